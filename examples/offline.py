"""Generate without a server: the model runs in this process."""

from pagemill import LLM, SamplingParams

llm = LLM()  # the demo model
prompts = ["Once upon a time", "The three primary colours are", "1 2 3 4 5 6 7 8"]
for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=20)):
    print(repr(output.prompt), "->", repr(output.outputs[0].text))
