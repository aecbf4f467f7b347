"""The target ``ethos-u``: Arm's Ethos-U NPUs, whose cycles, SRAM and flash Arm's compiler Vela models."""
