"""Anthropic's Messages API over the chat endpoint's machinery."""
