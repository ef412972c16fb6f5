"""The `rest` command: one file a group of subcommands; flags in, a call of the library, what is shown."""
