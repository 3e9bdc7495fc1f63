"""What the side that hands out blocks and the device agree on."""

NULL_BLOCK = 0
