"""Reading of a batch's input file in parts, with bounded memory."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from frontend.batches.answering import Answerer, Line
from frontend.batches.contents import Contents
from frontend.batches.lines import InputLine, strip_line
from frontend.batches.rows import FilePart

#: Bytes of a line besides those of its body.
ENVELOPE_BYTES = 64 * 1024
#: Most bytes of the lines of a part and of their answers, as estimated, unless a single line has more.
PART_BYTES = 4 * 1024 * 1024


class InputFile:
    """The lines of an input file."""

    def __init__(self, contents: Contents, parts: Sequence[FilePart], max_body_bytes: int) -> None:
        self._contents, self._parts = contents, parts
        #: Longest line, in bytes.
        self.max_line_bytes = max_body_bytes + ENVELOPE_BYTES

    async def read_lines(self, offset: int = 0, lines: int = 0) -> AsyncGenerator[InputLine, None]:
        """Yield the lines that are not blank from an offset of the file, which is after this number of lines."""
        found = self._contents.read_lines(self._parts, offset, max_line_bytes=self.max_line_bytes)
        async with contextlib.aclosing(found):
            async for line in found:
                lines += 1
                content = None if line.content is None else strip_line(line.content, lines)
                if content != b"":
                    yield InputLine(lines, line.end, content, line.end - offset)
                offset = line.end

    async def read_part(self, answerer: Answerer, offset: int, lines: int, max_lines: int) -> list[Line]:
        """Return the next lines, ready to be sent; none at the end of the file."""
        part: list[Line] = []
        part_bytes = 0
        async with contextlib.aclosing(self.read_lines(offset, lines)) as found:
            async for line in found:
                ready = answerer.prepare(line)
                part_bytes += answerer.estimate_bytes(ready)
                if part and part_bytes > PART_BYTES:
                    break
                part.append(ready)
                if len(part) == max_lines:
                    break
        return part
