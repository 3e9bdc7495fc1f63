"""From a choice's text to content, reasoning and tool calls."""
