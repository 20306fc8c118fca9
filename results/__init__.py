"""Tables and a report page of finished runs. Works without torch."""
