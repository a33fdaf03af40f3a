package policy

import (
	"bytes"
	"strings"
)

// CutMessage takes a message apart that was saved in a file, with LF or CRLF
// line ends and perhaps the "From " line of a mailbox in front. The header ends
// at an empty line or, as Postfix has it, in front of the first line that is no
// header field. Values are as in [Field]; the body has CRLF line ends.
func CutMessage(saved []byte) (fields []Field, body []byte) {
	text := bytes.ReplaceAll(saved, []byte("\r\n"), []byte("\n"))
	if bytes.HasPrefix(text, []byte("From ")) {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		if len(line) == 0 {
			text = rest
			break
		}
		if n := len(fields); n > 0 && (line[0] == ' ' || line[0] == '\t') {
			fields[n-1].Value += "\n" + string(line)
			text = rest
			continue
		}
		name, value, found := strings.Cut(string(line), ":")
		if !found || !UsableName(strings.TrimRight(name, " \t")) {
			break
		}
		fields = append(fields, Field{Name: name, Value: value})
		text = rest
	}
	return fields, bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
}
