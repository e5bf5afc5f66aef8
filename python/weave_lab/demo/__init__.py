"""The demonstration: one server with adapters beside one plain server for every merged checkpoint, same requests."""
