"""OpenAI's Responses API over the chat endpoint's machinery."""
