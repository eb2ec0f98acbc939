"""Programs of client libraries, and where and as whom they connect."""
