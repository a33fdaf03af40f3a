package table

import (
	"bytes"
	"strings"

	"postern/internal/conf"
)

// Bounds of one table file. A longer line, or more of them, is a fault.
const (
	MaxLine  = 64 << 10 // bytes of one logical line
	MaxRules = 2 << 20  // rules and conditions
)

// logicalLine is a line with its continuations joined.
type logicalLine struct {
	line   int // of its first physical line, from 1
	text   string
	joined bool // it has continuations, so a place in text is no column
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// logicalLines joins lines as Postfix's readllines(3) does: a line that
// begins with white space goes on with the one before, and comments and blank
// lines in between vanish. Carriage returns before line ends and a byte order
// mark are dropped.
func logicalLines(name string, data []byte, fs, warnings *conf.Faults) []logicalLine {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var lines []logicalLine
	for n := 1; len(data) > 0; n++ {
		var raw []byte
		raw, data, _ = bytes.Cut(data, []byte("\n"))
		raw = bytes.TrimSuffix(raw, []byte("\r"))
		text := string(raw)
		start := strings.TrimLeft(text, " \t\v\f\r")
		if start == "" || start[0] == '#' {
			continue
		}
		if i := strings.IndexByte(text, 0); i >= 0 {
			fs.Filef(name, n, i+1, "a NUL byte: this is no text file")
			return nil
		}
		continues := isSpace(text[0])
		if continues && len(lines) == 0 {
			warnings.Filef(name, n, 1, "a line that begins with white space continues the one before, but there is none")
			continue
		}
		if continues {
			last := &lines[len(lines)-1]
			last.text += text
			last.joined = true
		} else {
			lines = append(lines, logicalLine{line: n, text: text})
		}
		last := &lines[len(lines)-1]
		if len(last.text) > MaxLine {
			fs.Filef(name, last.line, 0, "the line has more than %d bytes", MaxLine)
			return nil
		}
		if len(lines) > MaxRules {
			fs.Filef(name, n, 0, "more than %d rules", MaxRules)
			return nil
		}
	}
	for i := range lines {
		lines[i].text = strings.TrimRight(lines[i].text, " \t\v\f\r")
	}
	return lines
}

// column is the column of offset i of the text, 0 when it cannot be told.
func (l logicalLine) column(i int) int {
	if l.joined {
		return 0
	}
	return i + 1
}
