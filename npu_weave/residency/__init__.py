"""Which adapter is where: registered by name, staged on the host, in a slot of the device."""
