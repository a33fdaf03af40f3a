package headercheck

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/htmlindex"
)

// decodeHeader returns a header, "Name: value", as a reader sees it: unfolded
// (RFC 5322 section 2.2.3), encoded words (RFC 2047) and the parameters of
// MIME headers (RFC 2231) decoded to UTF-8. What cannot be decoded stays.
func decodeHeader(text string) string {
	text = unfold(text)
	if i := strings.IndexByte(text, ':'); strings.IndexByte(text, '*') > i && i > 0 && isMIMEHeader(text[:i]) {
		text = text[:i+1] + decodeParameters(text[i+1:])
	}
	if strings.Contains(text, "=?") {
		text = decodeWords(text)
	}
	return text
}

// unfold takes out line ends; the white space that follows them stays.
func unfold(s string) string {
	if !strings.ContainsAny(s, "\r\n") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] != '\n' && s[i] != '\r' {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// encodedWord is "=?charset?B?text?=", its text decoded to bytes.
type encodedWord struct {
	charset string
	data    []byte
}

// cutWord reads the encoded word that s begins with.
func cutWord(s string) (w encodedWord, length int, ok bool) {
	charset, rest, ok := strings.Cut(s[2:], "?")
	if !ok || charset == "" || strings.ContainsAny(charset, " \t=") {
		return w, 0, false
	}
	encoding, rest, ok := strings.Cut(rest, "?")
	if !ok || len(encoding) != 1 {
		return w, 0, false
	}
	body, _, ok := strings.Cut(rest, "?=")
	if !ok {
		return w, 0, false
	}
	w.charset, _, _ = strings.Cut(strings.ToLower(charset), "*") // RFC 2231: a language may follow
	switch encoding {
	case "B", "b":
		w.data, ok = decodeBase64(body)
	case "Q", "q":
		w.data, ok = decodeQ(body), true
	default:
		ok = false
	}
	return w, 2 + len(charset) + 1 + 1 + 1 + len(body) + 2, ok
}

// decodeBase64 forgives what readers forgive: missing padding, white space.
func decodeBase64(s string) ([]byte, bool) {
	s = strings.TrimRight(strings.ReplaceAll(strings.ReplaceAll(s, " ", ""), "\t", ""), "=")
	data, err := base64.RawStdEncoding.DecodeString(s)
	return data, err == nil
}

func decodeQ(s string) []byte {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '_':
			b = append(b, ' ')
		case s[i] == '=' && i+2 < len(s):
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				b = append(b, s[i])
				continue
			}
			b = append(b, byte(v))
			i += 2
		default:
			b = append(b, s[i])
		}
	}
	return b
}

// decodeWords decodes the encoded words in s. White space between two of them
// vanishes, and neighbours of one character set are converted together: some
// senders cut characters in two.
func decodeWords(s string) string {
	var out strings.Builder
	var charset string
	var data []byte
	flush := func() {
		out.WriteString(toUTF8(charset, data))
		data = nil
	}
	for s != "" {
		i := strings.Index(s, "=?")
		if i < 0 {
			break
		}
		w, n, ok := cutWord(s[i:])
		if !ok || data == nil || strings.Trim(s[:i], " \t") != "" {
			flush()
			out.WriteString(s[:i])
		}
		if !ok {
			out.WriteString("=?")
			s = s[i+2:]
			continue
		}
		if data != nil && charset != w.charset {
			flush()
		}
		if data == nil {
			data = []byte{}
		}
		charset, data = w.charset, append(data, w.data...)
		s = s[i+n:]
	}
	flush()
	out.WriteString(s)
	return out.String()
}

// toUTF8 converts text. Of an unknown character set the bytes are kept, so
// that at least ASCII words can be found. Control characters become blanks.
func toUTF8(charset string, data []byte) string {
	s := string(data)
	if charset != "" && charset != "utf-8" && charset != "us-ascii" {
		if enc, err := htmlindex.Get(charset); err == nil {
			if u, err := enc.NewDecoder().String(s); err == nil {
				s = u
			}
		}
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		s = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(s, string(utf8.RuneError)))
	}
	return s
}

// maxSections is how many pieces of one parameter are put together.
const maxSections = 1000

// parameter is one "name*1*=value" of a MIME header, taken apart.
type parameter struct {
	section int
	encoded bool
	value   string
}

// decodeParameters rewrites parameters in the forms of RFC 2231 as
// name="value", after the others and in the order in which they appear.
func decodeParameters(value string) string {
	var out strings.Builder
	var order []string
	pieces := map[string][]parameter{}
	for i, p := range splitParameters(value) {
		name, v, ok := strings.Cut(p, "=")
		base, star, special := strings.Cut(strings.ToLower(strings.TrimSpace(name)), "*")
		var one parameter
		if ok && special && i > 0 && base != "" {
			digits, encoded := strings.CutSuffix(star, "*")
			if star == "" {
				encoded = true
			}
			n, err := strconv.Atoi(digits)
			special = star == "" || err == nil && n >= 0 && n < maxSections
			one = parameter{n, encoded, unquote(strings.TrimSpace(v))}
		}
		if !ok || !special || i == 0 || base == "" {
			if i > 0 {
				out.WriteByte(';')
			}
			out.WriteString(p)
			continue
		}
		if pieces[base] == nil {
			order = append(order, base)
		}
		if len(pieces[base]) < maxSections {
			pieces[base] = append(pieces[base], one)
		}
	}
	for _, name := range order {
		ps := pieces[name]
		slices.SortStableFunc(ps, func(a, b parameter) int { return a.section - b.section })
		var data []byte
		charset := ""
		for i, p := range ps {
			v := p.value
			if p.encoded {
				if i == 0 {
					if cs, rest, ok := strings.Cut(v, "'"); ok {
						if _, text, ok := strings.Cut(rest, "'"); ok {
							charset, v = strings.ToLower(cs), text
						}
					}
				}
				data = append(data, decodePercent(v)...)
			} else {
				data = append(data, v...)
			}
		}
		text := strings.ReplaceAll(strings.ReplaceAll(toUTF8(charset, data), `\`, `\\`), `"`, `\"`)
		out.WriteString("; " + name + `="` + text + `"`)
	}
	return out.String()
}

// splitParameters cuts at semicolons outside quotes.
func splitParameters(s string) []string {
	var out []string
	start, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quoted:
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ';' && !quoted:
			out = append(out, s[start:i])
			start = i + 1
		}
	}
	return append(out, s[start:])
}

func unquote(s string) string {
	if len(s) == 0 || s[0] != '"' {
		return s
	}
	t := tokenizer{s: s, i: 1}
	return t.quoted()
}

func decodePercent(s string) []byte {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(v))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return b
}
