"""Random damage to the bytes of a file, for tests of parsers."""

from hypothesis import strategies as st


def damaged(data, content: bytes, inserts: list[bytes]) -> bytes:
    """`content` after one to four changes: a byte replaced, the rest cut off, one of `inserts` put in, or a second copy
    of the whole joined to it."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        how = data.draw(st.sampled_from(["change", "cut", "insert", "join"]))
        if how == "change" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = data.draw(st.sampled_from(inserts))
        else:
            content += bytes(content)
    return bytes(content)
