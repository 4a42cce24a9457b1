"""One short file a family: where its parts lie and which part of the picture each visual token stands for.

To add one: copy `llava.py`, give the paths of the parts and the boxes of the visual tokens, and name it here.
"""

from emointerp.models.families import gemma3, idefics3, llava, llava_next, llava_onevision, qwen2_5_vl, qwen2_vl, qwen3_vl

FAMILIES = tuple(module.FAMILY for module in (llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3, gemma3))
