package callout

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"postern/policy"
)

// Bounds of one reply (RFC 5321 section 4.5.3.1.5 asks for 512 octets a line).
const (
	maxLine  = 2048
	maxLines = 100
)

// Reply is one complete reply of a server (RFC 5321 section 4.2).
type Reply struct {
	Code int
	// Enhanced is the status code (RFC 3463) behind the code, "5.1.1"; empty
	// when there is none or its class is not that of the code.
	Enhanced string
	// Lines are the texts of the lines, without codes, not cleaned.
	Lines []string
}

// String returns the reply in one printable line, "" for the zero Reply.
func (r Reply) String() string {
	if r.Code == 0 {
		return ""
	}
	text := policy.Printable(strings.Join(r.Lines, " "))
	if len(text) > 300 {
		text = text[:300]
	}
	out := fmt.Sprint(r.Code)
	if r.Enhanced != "" {
		out += " " + r.Enhanced
	}
	if text != "" {
		out += " " + text
	}
	return out
}

// positive reports a 2xx.
func (r Reply) positive() bool { return r.Code/100 == 2 }

var errReply = errors.New("malformed reply")

// readReply reads one reply, all of its lines. A line without a text, a bare
// LF and a missing separator are taken; another code in a later line is not.
func readReply(r *bufio.Reader, said func(line string)) (Reply, error) {
	var out Reply
	for range maxLines {
		line, err := readLine(r)
		if err != nil {
			return Reply{}, err
		}
		said(line)
		if len(line) < 3 || !digits(line[:3]) || line[0] < '2' || line[0] > '5' {
			return Reply{}, fmt.Errorf("%w: %q", errReply, clip(line))
		}
		code := int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
		if out.Code != 0 && code != out.Code {
			return Reply{}, fmt.Errorf("%w: %d after %d", errReply, code, out.Code)
		}
		out.Code = code
		last := len(line) == 3 || line[3] != '-'
		text := ""
		if len(line) > 3 {
			if line[3] != ' ' && line[3] != '-' {
				return Reply{}, fmt.Errorf("%w: %q", errReply, clip(line))
			}
			text = line[4:]
		}
		enhanced, rest := cutEnhanced(text, line[0])
		if len(out.Lines) == 0 {
			out.Enhanced = enhanced
		}
		if enhanced != "" {
			text = rest
		}
		out.Lines = append(out.Lines, text)
		if last {
			return out, nil
		}
	}
	return Reply{}, fmt.Errorf("%w: more than %d lines", errReply, maxLines)
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", fmt.Errorf("%w: a line of more than %d bytes", errReply, maxLine)
	}
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

// cutEnhanced returns the enhanced status code at the beginning of a text if
// it is of the class, and what follows it.
func cutEnhanced(text string, class byte) (code, rest string) {
	word, rest, _ := strings.Cut(text, " ")
	parts := strings.Split(word, ".")
	if len(parts) != 3 || len(parts[0]) != 1 || parts[0][0] != class || class != '2' && class != '4' && class != '5' {
		return "", text
	}
	for _, p := range parts[1:] {
		if len(p) < 1 || len(p) > 3 || !digits(p) {
			return "", text
		}
	}
	return word, rest
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return s
}
