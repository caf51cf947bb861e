"""Maps each tab of the page to the lesson of the course that explains it."""

from ..provenance import PROJECT_PAGE

LESSONS = {  # tab -> page of the lesson, its number and title
    "Generate": ("07_generating.md", "lesson 7, Generating"),
    "Attention": ("04_attention.md", "lesson 4, Attention"),
    "Tokenizer": ("01_tokens.md", "lesson 1, Text to tokens"),
    "Classify": ("09_classifying.md", "lesson 9, Classifying"),
    "Chat": ("10_instructions.md", "lesson 10, Following instructions"),
}
FOLDER = "scripts/course/pages"


def lesson_line(tab: str, project_page: str = PROJECT_PAGE) -> str:
    """One line of Markdown from a tab to its lesson: a link, or the file's path if the project has no address."""
    file, title = LESSONS[tab]
    if project_page:
        return f"How this works: [{title}]({project_page}/blob/main/{FOLDER}/{file})"
    return f"How this works: {title}, `{FOLDER}/{file}` in the repository"
