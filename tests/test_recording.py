"""What headers state about units, limits, missing samples, rates and pauses, against the values that were written."""

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest

from dataset_maker import pipeline
from dataset_maker.headers import volts_per
from dataset_maker.pipeline import FilterSettings, Pipeline, Prepared, read_raw
from dataset_maker.recording import of_raw
from errors import InputError
from maker_helpers import NAMES, brainvision, edf_of, gdf_of, noise, raw_of

SECONDS = 4


def prepared(path: Path, **options: Any) -> Prepared:
    """Read a file, without filters."""
    settings = Pipeline(FilterSettings(None, None, None, None), **options)
    return pipeline.prepare(of_raw(read_raw(path), str(path), path=path, unit=settings.unit), settings)


def counts(rate: int = 200, names: list[str] = NAMES, sd: float = 200) -> dict[str, np.ndarray]:
    """Return digital values, ten a uV."""
    return {name: np.rint(noise(1, SECONDS, rate, seed)[0] / 20 * sd) for seed, name in enumerate(names)}


# ---- units


@pytest.mark.parametrize(
    ("unit", "volts"),
    [
        *[
            (text, 1e-6)
            for text in ("uV", "uv", "UV", " uV  ", "uV\0\0junk", "microV", "Microvolt", "uVolts", ".V", "?V")
        ],
        *[("\u00b5V".encode(page).decode("latin-1"), 1e-6) for page in ("latin-1", "utf-8", "cp437", "mac-roman")],
        *[("\u03bcV".encode(page).decode("latin-1"), 1e-6) for page in ("utf-8", "shift-jis", "gbk", "iso8859-7")],
        *[("mV", 1e-3), ("MV", 1e-3), ("millivolts", 1e-3), ("nV", 1e-9), ("V", 1.0), ("volt", 1.0)],
        *[(text, None) for text in ("", "   ", "\0\0", "xV", "uA", "degC", "%", "uV/bit", "cmH2O", "1V")],
    ],
)
def test_every_spelling_of_a_voltage_is_known_and_nothing_else(unit: str, volts: float | None) -> None:
    assert volts_per(unit) == volts


@pytest.mark.parametrize(("unit", "factor"), [("uv", 1), (b"\xe6V", 1), ("nV", 1e-3), ("mV", 1e3), ("V", 1e6)])
@pytest.mark.parametrize("suffix", ["edf", "bdf"])
def test_edf_and_bdf_values_follow_the_unit_of_the_header(
    unit: Any, factor: float, suffix: str, tmp_path: Path
) -> None:
    path = edf_of(tmp_path / f"a.{suffix}", given := counts(), seconds=SECONDS, unit=unit)
    expected = np.array(list(given.values())) / 10 * factor
    np.testing.assert_allclose(prepared(path, scale=1.0).eeg, expected, rtol=1e-5, atol=0.051 * factor)


@pytest.mark.parametrize(("code", "factor"), [(4275, 1), (4276, 1e-3), (4274, 1e3), (4256, 1e6)])
def test_gdf_values_follow_the_code_of_the_unit(code: int, factor: float, tmp_path: Path) -> None:
    path = gdf_of(tmp_path / "a.gdf", given := counts(), SECONDS, code=code)
    expected = np.array(list(given.values())) / 10 * factor
    np.testing.assert_allclose(prepared(path, scale=1.0).eeg, expected, rtol=1e-5, atol=1e-4 * factor)


def test_a_channel_without_a_known_unit_is_refused_by_name_and_opened_by_the_flag(tmp_path: Path) -> None:
    files = [edf_of(tmp_path / "blank.edf", counts(), seconds=SECONDS, unit=["uV", "", "nV"])]
    files += [gdf_of(tmp_path / "code.gdf", counts(), SECONDS, code=512)]
    for path, name in zip(files, ("Cz", "C3"), strict=True):
        with pytest.raises(InputError, match=rf"{path.name}.*'{name}'.*--unit uV"):
            prepared(path)
    eeg = prepared(files[0], unit="mV", scale=1.0).eeg  # only the unit that is not known
    np.testing.assert_allclose(eeg.std(axis=1), [20, 20e3, 0.02], rtol=0.1)
    assert prepared(files[0], drop=("Cz",), scale=1.0).electrodes == ["C3", "C4"]


@pytest.mark.parametrize(
    ("unit", "factor"), [("", 1), ("µV", 1), ("μV", 1), ("UV", 1), ("microV", 1), ("mv", 1e3), ("nV", 1e-3)]
)
def test_brainvision_electrodes_are_eeg_in_whatever_spelling_of_their_unit(
    unit: str, factor: float, tmp_path: Path
) -> None:
    path = brainvision(tmp_path / "a.vhdr", values := noise(3, SECONDS, 200), unit=unit, Codepage="UTF-8")
    np.testing.assert_allclose(prepared(path, scale=1.0).eeg, values * factor, rtol=1e-5)


def test_a_brainvision_electrode_in_an_unknown_unit_is_refused_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'C3'.*xV.*--unit"):
        prepared(brainvision(tmp_path / "a.vhdr", noise(3, SECONDS, 200), unit="xV"))


# ---- limits, missing samples


@pytest.mark.parametrize("limits", ["p", "d"])
def test_equal_limits_define_no_scale(limits: str, tmp_path: Path) -> None:
    low, high = {"p": (-3276.8, 3276.7), "d": (-32768, 32767)}[limits]
    fields = {f"{limits}min": [low, 0, low], f"{limits}max": [high, 0, high]}
    path = edf_of(tmp_path / "a.edf", counts(), seconds=SECONDS, **fields)
    with pytest.raises(InputError, match=r"'Cz'.*no scale.*--drop 'Cz'"):
        prepared(path)


@pytest.mark.parametrize("limits", ["p", "d"])
def test_reversed_limits_turn_the_polarity(limits: str, tmp_path: Path) -> None:
    low, high = {"p": (-3276.8, 3276.7), "d": (-32768, 32767)}[limits]
    given = counts()
    path = edf_of(tmp_path / "a.edf", given, seconds=SECONDS, **{f"{limits}min": high, f"{limits}max": low})
    np.testing.assert_allclose(prepared(path).eeg, -np.array(list(given.values())) / 10, atol=0.11)


@pytest.mark.parametrize("suffix", ["gdf", "edf", "bdf"])
def test_the_lowest_digital_value_on_all_electrodes_is_no_sample(suffix: str, tmp_path: Path) -> None:
    given = counts()
    for values in given.values():
        values[450:500] = -8_000_000 if suffix == "bdf" else -32768
    path = tmp_path / f"a.{suffix}"
    gdf_of(path, given, SECONDS) if suffix == "gdf" else edf_of(path, given, seconds=SECONDS)
    result = prepared(path)
    assert result.quality.valid.tolist() == [True, True, False, True]
    assert np.abs(result.eeg).max() < 150, "a line bridges the gap"


def test_one_electrode_at_its_lowest_value_is_saturated_in_edf_and_missing_in_gdf(tmp_path: Path) -> None:
    given = counts()
    given["Cz"][450:500] = -32768
    in_edf = prepared(edf_of(tmp_path / "a.edf", given, seconds=SECONDS))
    assert in_edf.quality.valid.all() and in_edf.quality.saturated == {"CZ": 1}
    assert prepared(gdf_of(tmp_path / "a.gdf", given, SECONDS)).quality.not_finite == {"CZ": 1}


def test_where_all_channels_are_bad_the_way_out_is_to_keep_them() -> None:
    raw, none = raw_of(NAMES, 200.0, noise(3, SECONDS, 200)), FilterSettings(None, None, None, None)
    raw.info["bads"] = NAMES
    with pytest.raises(InputError, match="--bad_channels keep"):
        pipeline.prepare(raw.copy(), Pipeline(none, bad_channels="drop"))
    assert len(pipeline.prepare(raw, Pipeline(none, bad_channels="keep")).electrodes) == 3


# ---- rates


@pytest.mark.parametrize("suffix", ["edf", "bdf", "gdf"])
@pytest.mark.parametrize("trigger", [50, 200, 1600])
def test_length_and_rate_are_those_of_the_eeg_whatever_a_trigger_has(suffix: str, trigger: int, tmp_path: Path) -> None:
    given = counts() | {"Trigger": np.zeros(SECONDS * trigger)}
    path = tmp_path / f"a.{suffix}"
    gdf_of(path, given, SECONDS) if suffix == "gdf" else edf_of(path, given, seconds=SECONDS)
    result = prepared(path, trim_end=0.7)
    assert (result.rate, result.length) == (200, 660)
    np.testing.assert_allclose(result.eeg, np.array([given[n] for n in NAMES])[:, :660] / 10, atol=0.06)


def test_a_loaded_recording_that_mne_stretched_to_the_rate_of_its_trigger_is_refused(tmp_path: Path) -> None:
    path = edf_of(tmp_path / "a.edf", counts() | {"Trigger": np.zeros(SECONDS * 1600)}, seconds=SECONDS)
    raw = mne.io.read_raw_edf(path, preload=True, verbose="error")
    for given in (raw, raw.copy().crop(1, 3), raw.copy().pick(["C3"]).resample(100, verbose="error")):
        with pytest.raises(InputError, match=r"lasts 4 s in its file and 32 s here"):
            of_raw(given)
    raw = mne.io.read_raw_edf(path, preload=True, exclude="Trigger", verbose="error")
    assert of_raw(raw.resample(100, verbose="error")), "a caller's own change of the rate is none"


def test_electrodes_of_two_rates_come_at_the_higher_one(tmp_path: Path) -> None:
    time = {rate: np.arange(SECONDS * rate) / rate for rate in (100, 200)}
    given = {
        name: np.rint(300 * np.sin(2 * np.pi * 5 * t))
        for name, t in zip(NAMES, (time[200], time[100], time[200]), strict=True)
    }
    for path in (edf_of(tmp_path / "a.edf", given, seconds=SECONDS), gdf_of(tmp_path / "a.gdf", given, SECONDS)):
        result = prepared(path)
        assert (result.rate, result.length) == (200, 800)
        np.testing.assert_allclose(result.eeg, np.tile(30 * np.sin(2 * np.pi * 5 * time[200]), (3, 1)), atol=0.2)


def test_too_long_a_recording_of_two_rates_is_refused(tmp_path: Path) -> None:
    given = {"C3": np.zeros(SECONDS * 200), "C4": np.ones(SECONDS * 100)}
    with pytest.raises(InputError, match=r"different sampling rates.*--drop"):
        prepared(edf_of(tmp_path / "a.edf", given, seconds=SECONDS), block_bytes=1000)


def test_of_two_channels_with_one_label_each_keeps_its_own_signal(tmp_path: Path) -> None:
    path = edf_of(
        tmp_path / "a.edf", counts() | {"Aux": np.zeros(SECONDS * 800), "X": np.zeros(SECONDS * 200)}, seconds=SECONDS
    )
    content = bytearray(path.read_bytes())
    content[256 + 4 * 16 : 256 + 5 * 16] = b"C3".ljust(16)  # X is called C3, too
    path.write_bytes(content)
    names = read_raw(path).ch_names
    result = prepared(path, drop=(names[0], "Aux"), rename={names[4]: "FZ"}, scale=1.0)
    assert result.electrodes == ["CZ", "C4", "FZ"] and not result.eeg[2].any() and result.eeg[0].any()


# ---- pauses


def test_pauses_of_edf_plus_d_end_a_stretch_and_the_clock_goes_on(tmp_path: Path) -> None:
    path = edf_of(tmp_path / "a.edf", counts(), onsets=[0.25, 1.25, 21.25, 22.25])
    raw = read_raw(path)
    assert [tuple(s) for s in of_raw(raw).stretches] == [(0, 2, 0), (2, 4, 21)]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"+1.25\x14", bytes(6)))  # a record without a time follows the one before
    assert [tuple(s) for s in of_raw(read_raw(path)).stretches] == [(0, 2, 0), (2, 4, 21)]
    path.write_bytes(content)
    cropped = raw.copy().crop(1.5, 3.5, include_tmax=False)
    assert [tuple(s) for s in of_raw(cropped).stretches] == [(0, 0.5, 1.5), (0.5, 2, 21)]


def test_a_clock_that_drifts_off_the_samples_keeps_labels_in_place(tmp_path: Path) -> None:
    onsets = [round(1.002 * record, 3) for record in range(1200)]  # 2.4 s too late at the end
    counts = {name: np.zeros(1200 * 10) for name in NAMES}
    stretches = of_raw(read_raw(edf_of(tmp_path / "a.edf", counts, onsets=onsets))).stretches
    off = [abs(s.clock + at - 1.002 * (s.start + at)) for s in stretches for at in (0, s.stop - s.start)]
    assert len(stretches) == 5 and max(off) < 0.51


def test_a_start_time_that_is_none_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = edf_of(tmp_path / "a.edf", counts(), seconds=SECONDS)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"01.01.0100.00.00", b"01.01.0199.99.99"))
    with pytest.raises(InputError, match=r"start time.*bytes 176 to 183"):
        prepared(path)
    path.write_bytes(path.read_bytes()[:176] + b"00.00.00" + path.read_bytes()[184:])
    assert prepared(path).length == 800


def test_times_of_records_that_do_not_increase_are_not_used(tmp_path: Path) -> None:
    recording = of_raw(read_raw(edf_of(tmp_path / "a.edf", counts(), onsets=[0, 0, 0, 0])))
    assert [tuple(s) for s in recording.stretches] == [(0, 4, 0)] and "pauses" in recording.warnings[0]


def test_a_file_that_announces_no_record_is_refused(tmp_path: Path) -> None:
    path = edf_of(tmp_path / "a.edf", counts(), seconds=SECONDS, records=0)
    with pytest.raises(InputError, match="announces 0 s and the file holds 4 s"):
        prepared(path)


@pytest.mark.parametrize("suffix", ["edf", "bdf"])
def test_a_file_that_holds_more_than_it_announces_says_so(suffix: str, tmp_path: Path) -> None:
    result = prepared(edf_of(tmp_path / f"a.{suffix}", counts(), seconds=SECONDS, records=3))
    assert result.length == 600 and "1 s more than the 3 s" in result.report["warnings"][0]
    for announced in (-1, SECONDS):
        result = prepared(edf_of(tmp_path / f"b.{suffix}", counts(), seconds=SECONDS, records=announced))
        assert result.length == 800 and not result.report["warnings"]


@pytest.mark.parametrize("suffix", ["edf", "bdf", "gdf"])
def test_a_file_that_holds_less_than_it_announces_is_converted_and_says_what_is_missing(
    suffix: str, tmp_path: Path
) -> None:
    path, given = tmp_path / f"a.{suffix}", counts()
    gdf_of(path, given, SECONDS) if suffix == "gdf" else edf_of(path, given, seconds=SECONDS)
    content = path.read_bytes()
    path.write_bytes(content[: -3 * 200 * 3])  # less than two records
    result = prepared(path)
    assert result.length in (400, 600)
    np.testing.assert_allclose(result.eeg, np.array(list(given.values()))[:, : result.length] / 10, atol=0.06)
    assert f"{SECONDS - result.length // 200:g} of 4 s" in result.report["warnings"][0]


def test_a_loaded_recording_of_a_caller_is_taken_as_it_is(tmp_path: Path) -> None:
    path = edf_of(tmp_path / "a.edf", counts(), seconds=SECONDS, unit="")
    raw = mne.io.read_raw_edf(path, preload=True, verbose="error").apply_function(lambda eeg: eeg * 1e-6)
    assert pipeline.prepare(raw, Pipeline(FilterSettings(None, None, None, None))).eeg.std() == pytest.approx(
        20, rel=0.1
    )
