"""What a config will need on machines that are not there yet: memory, communication, time."""
