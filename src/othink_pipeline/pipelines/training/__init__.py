"""The sft and rl pipelines, which differ in the methods whose cells they train."""
