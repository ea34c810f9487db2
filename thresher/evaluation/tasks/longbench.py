"""LongBench from the JSON lines that its authors publish, in a folder that the user has: DIR/narrativeqa.jsonl, …

Prompts, lengths of answers, what is asked without a chat template, and how a prompt that is too long is cut are theirs.

Source: Bai et al., LongBench (2024), and the program that its authors published with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loaders.settings import json_object
from reference.checks import require
from thresher.evaluation.samples import Ask, Document, Task, Tools
from thresher.evaluation.scorers import longbench as scorer

BRIEFLY = "as concisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
UNANSWERABLE = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based "
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", '
    '"no", or "unanswerable". Do not provide any explanation.\n\n'
)
PASSAGES = "Answer the question based on the given passages. Only give me the answer and do not output any other words."
HOPS = (
    f"{PASSAGES}\n\nThe following are given passages.\n",
    f"\n\n{PASSAGES}\n\nQuestion: {{input}}\nAnswer:",
)
WIKIPEDIA = (
    "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
    "these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other words, "
    "how many non-repeating paragraphs are there in total?\n\n"
)
COUNT = (
    "\n\nPlease enter the final count of unique paragraphs after removing duplicates. The output format should only "
    "contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: "
)
PARAGRAPH = (
    "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract is "
    "from.\n\n"
)
WHICH = (
    "\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is "
    'from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: '
)
CODE = "Please complete the code given below. \n"
# What stands before the context and after it, and the tokens of an answer.
DATASETS: dict[str, tuple[str, str, int]] = {
    "narrativeqa": (
        "You are given a story, which can be either a novel or a movie script, and a question. Answer the question "
        f"{BRIEFLY}Story: ",
        f"\n\nNow, answer the question based on the story {BRIEFLY}Question: {{input}}\n\nAnswer:",
        128,
    ),
    "qasper": (
        f"You are given a scientific article and a question. Answer the question {UNANSWERABLE}Article: ",
        f"\n\n Answer the question based on the above article {UNANSWERABLE}Question: {{input}}\n\nAnswer:",
        128,
    ),
    "multifieldqa_en": (
        "Read the following text and answer briefly.\n\n",
        "\n\nNow, answer the following question based on the above text, only give me the answer and do not output "
        "any other words.\n\nQuestion: {input}\nAnswer:",
        64,
    ),
    "multifieldqa_zh": (
        "阅读以下文字并用中文简短回答：\n\n",
        "\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
        64,
    ),
    "hotpotqa": (*HOPS, 32),
    "2wikimqa": (*HOPS, 32),
    "musique": (*HOPS, 32),
    "dureader": (
        "请基于给定的文章回答下述问题。\n\n文章：",
        "\n\n请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        128,
    ),
    "gov_report": (
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n",
        "\n\nNow, write a one-page summary of the report.\n\nSummary:",
        512,
    ),
    "qmsum": (
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one "
        "or more sentences.\n\nTranscript:\n",
        "\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\n"
        "Query: {input}\nAnswer:",
        512,
    ),
    "multi_news": (
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n",
        "\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        512,
    ),
    "vcsum": ("下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n", "\n\n会议总结：", 512),
    "trec": (
        "Please determine the type of the question below. Here are some examples of questions.\n\n",
        "\n{input}",
        64,
    ),
    "triviaqa": (
        "Answer the question based on the given passage. Only give me the answer and do not output any other words. "
        "The following are some examples.\n\n",
        "\n\n{input}",
        32,
    ),
    "samsum": (
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n",
        "\n\n{input}",
        128,
    ),
    "lsht": ("请判断给定新闻的类别，下面是一些例子。\n\n", "\n{input}", 64),
    "passage_count": (WIKIPEDIA, COUNT, 32),
    "passage_retrieval_en": (PARAGRAPH, WHICH, 32),
    "passage_retrieval_zh": (
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n",
        '\n\n下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',
        32,
    ),
    "lcc": (CODE, "Next line of code:\n", 64),
    "repobench-p": (CODE, "{input}Next line of code:\n", 64),
}
PLAIN = (*scorer.FIRST_LINE, "lcc", "repobench-p")  # asked without a chat template
STOPS = {"samsum": ("\n",)}  # the model would go on with the next dialogue


def _name(task: Task) -> str:
    return task.name.partition("/")[2]


def _documents(tools: Tools, task: Task, length: int, limit: int) -> list[Document]:
    name = _name(task)
    before, after, _ = DATASETS[name]
    rows = _rows(tools.data, name)
    found = []
    for n in tools.rng(task.name).permutation(len(rows))[:limit].tolist():
        row = rows[n]
        ask = Ask(after.replace("{input}", row["input"]), tuple(row["answers"]))
        facts = {"classes": row["all_classes"]} if row.get("all_classes") else {}
        document = Document(str(row.get("_id", n)), before + row["context"], (ask,), facts)
        found.append(tools.cut(task, document, length))
    return found


def _rows(folder: Path | None, name: str) -> list[dict[str, Any]]:
    """The lines of a dataset. FileNotFoundError where the folder has no such file, ValueError for another content."""
    if folder is None:
        raise FileNotFoundError(f"longbench/{name}: got no folder, wanted --data DIR with {name}.jsonl in it")
    places = (folder / f"{name}.jsonl", folder / "data" / f"{name}.jsonl")
    path = next((path for path in places if path.exists()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: got no {name}.jsonl, wanted LongBench's JSON lines")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line:
            row = json_object(line, f"{path}: line {number}")
            good = all(isinstance(row.get(key), str) for key in ("input", "context")) and row.get("answers")
            require(bool(good), f"{path}: line {number}: got {json.dumps(row)[:80]}, wanted input, context and answers")
            rows.append(row)
    require(bool(rows), f"{path}: got an empty file, wanted LongBench's JSON lines")
    return rows


def _scorer(name: str) -> Any:
    return lambda answer, ask, facts: scorer.score(name, answer, ask.wanted, facts.get("classes"))


TASKS = tuple(
    Task(
        f"longbench/{name}",
        _documents,
        _scorer(name),
        tokens,
        fixed=True,
        chat=name not in PLAIN,
        stop=STOPS.get(name, ()),
    )
    for name, (_, _, tokens) in DATASETS.items()
)
