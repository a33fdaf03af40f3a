package headercheck

import (
	"bytes"
	"strings"
)

// class is where a header stands.
type class uint8

const (
	primary class = iota // of the message itself
	part                 // of a MIME part
	nested               // of an attached message
)

// record is what kind of line is handed on.
type record uint8

const (
	whole   record = iota + 1 // the end of a line
	partial                   // more of the line follows
	end                       // there are no more lines
)

// splitState is what the next line is.
type splitState uint8

const (
	inPrimary splitState = iota
	inPart
	inNested
	inBody
)

// contentType is what a part holds, as far as it matters.
type contentType uint8

const (
	leaf contentType = iota
	multipart
	message       // message/rfc822 or message/global: headers follow
	messageOther  // message/partial and others: no headers are looked for
	messageDigest = message
)

// splitLimits bound the splitter.
type splitLimits struct {
	header   int // bytes of a header, beyond which no more lines are taken
	line     int // bytes of a line, beyond which it is handed on in pieces
	nesting  int // boundaries inside each other
	boundary int // bytes of a boundary
	noMIME   bool
}

// delimiter is a boundary that may end the present part.
type delimiter struct {
	text  string
	parts contentType // of parts without a Content-Type
}

// splitter tells headers and body lines apart, as Postfix does on input
// (mime_state(3)): a line is a header or it ends the block of headers, and the
// boundaries of all enclosing parts are looked for in body lines.
//
// head and body are called in the order of the message. What they are given
// is valid during the call only.
type splitter struct {
	splitLimits
	// head takes one header with its lines joined by LF, white space before
	// the colon taken out, and the lines as they came, without line ends.
	head func(c class, text []byte, raw []byte)
	// body takes a line, or a piece of one, and where it begins in its segment.
	body func(rec record, text []byte, offset int)
	// keepRaw makes raw available to head, up to rawLimit bytes; rawLost is
	// set when a header had more.
	keepRaw  bool
	rawLimit int
	rawLost  bool
	// tooDeep is set when there were more boundaries inside each other than allowed.
	tooDeep bool

	state  splitState
	ctype  contentType
	header []byte // collected so far
	raw    []byte
	prev   record
	stack  []delimiter // the innermost last
	offset int
	line   []byte // of write: an unfinished line
}

// write takes the next bytes, cut anywhere.
func (s *splitter) write(p []byte) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			s.line = append(s.line, p...)
			rest := s.line
			for len(rest) > s.splitLimits.line {
				s.update(partial, rest[:s.splitLimits.line])
				rest = rest[s.splitLimits.line:]
			}
			s.line = s.line[:copy(s.line, rest)]
			return
		}
		text := p[:i]
		if len(s.line) > 0 {
			s.line = append(s.line, text...)
			text = s.line
		}
		for len(text) > s.splitLimits.line {
			s.update(partial, text[:s.splitLimits.line])
			text = text[s.splitLimits.line:]
		}
		s.update(whole, bytes.TrimRight(text, "\r"))
		s.line = s.line[:0]
		p = p[i+1:]
	}
}

// finish takes an unfinished last line and ends the message.
func (s *splitter) finish() {
	if len(s.line) > 0 {
		s.update(whole, bytes.TrimRight(s.line, "\r"))
		s.line = s.line[:0]
	}
	s.update(end, nil)
}

// field takes a primary header that somebody else has found.
func (s *splitter) field(name, value string) {
	if !s.noMIME && len(name) == len(contentTypeName) && strings.EqualFold(name, contentTypeName) {
		s.contentType(value)
	}
}

// endOfFields ends the primary headers given to field, as an empty line does.
func (s *splitter) endOfFields() { s.update(whole, nil) }

const contentTypeName = "Content-Type"

// update takes a line, or a piece of one of at most the longest length.
func (s *splitter) update(rec record, text []byte) {
	if rec == end && s.prev == partial {
		s.update(whole, nil)
	}
	if s.state != inBody {
		if s.headerLine(rec, text) {
			s.prev = rec
			return
		}
		s.endOfHeaders(rec, text)
	}
	if rec == end {
		return
	}
	if s.prev != partial && len(s.stack) > 0 && len(text) > 2 && text[0] == '-' && text[1] == '-' {
		s.boundaryLine(text[2:])
	}
	s.body(rec, text, s.offset)
	s.offset += len(text) + 1
	s.prev = rec
}

// headerLine takes a line that begins or continues a header, and hands on the
// header before it. It returns false when the line is neither.
func (s *splitter) headerLine(rec record, text []byte) bool {
	if len(s.header) > 0 {
		if rec != end {
			goesOn := s.prev == partial
			if goesOn || len(text) > 0 && (text[0] == ' ' || text[0] == '\t') {
				room := len(s.header) < s.splitLimits.header
				if !goesOn {
					if room {
						s.header = append(s.header, '\n')
					}
					s.addRaw('\n')
				}
				if room {
					s.header = append(s.header, text...)
				}
				s.addRaw(text...)
				return true
			}
		}
		if name, value, _ := bytes.Cut(s.header, colon); !s.noMIME && strings.EqualFold(string(name), contentTypeName) {
			s.contentType(string(value))
		}
		c := primary
		switch s.state {
		case inPart:
			c = part
		case inNested:
			c = nested
		case inPrimary, inBody:
		}
		s.head(c, s.header, s.raw)
		s.offset += len(text) + 1
		s.prev = 0
		s.header, s.raw = s.header[:0], s.raw[:0]
	}
	if rec == end {
		return false
	}
	name := headerName(text)
	if name == 0 {
		return false
	}
	s.header = append(s.header, text[:name]...)
	s.header = append(s.header, bytes.TrimLeft(text[name:], " \t")...)
	s.addRaw(text...)
	return true
}

func (s *splitter) addRaw(text ...byte) {
	switch {
	case !s.keepRaw:
	case len(s.raw)+len(text) > s.rawLimit:
		s.rawLost = true
	default:
		s.raw = append(s.raw, text...)
	}
}

var colon = []byte(":")

// headerName returns the length of the header name that text begins with, 0
// when it is no header.
func headerName(text []byte) int {
	n := 0
	for n < len(text) && text[n] > ' ' && text[n] < 0x7f && text[n] != ':' {
		n++
	}
	for _, c := range text[n:] {
		if c == ':' {
			return n
		}
		if c != ' ' && c != '\t' {
			break
		}
	}
	return 0
}

// endOfHeaders finds out what a line begins that is no header.
func (s *splitter) endOfHeaders(rec record, text []byte) {
	was := s.state
	s.state = inBody
	switch {
	case rec == end:
	case len(text) == 0:
		s.offset = 0
		switch s.ctype {
		case message:
			s.state, s.ctype = inNested, leaf
		case multipart:
			s.ctype = leaf
		case leaf, messageOther:
		}
	case was == inPrimary:
		// Postfix puts an empty line here.
		s.body(whole, nil, s.offset)
		s.offset++
	}
}

// boundaryLine looks whether a line that began with "--" is a boundary.
func (s *splitter) boundaryLine(text []byte) {
	for i := len(s.stack) - 1; i >= 0; i-- {
		d := &s.stack[i]
		if len(text) < len(d.text) || string(text[:len(d.text)]) != d.text {
			continue
		}
		if bytes.HasPrefix(text[len(d.text):], []byte("--")) {
			s.stack = s.stack[:i]
			s.state, s.ctype = inBody, leaf
		} else {
			s.stack = s.stack[:i+1]
			s.state, s.ctype = inPart, d.parts
		}
		return
	}
}

// contentType reads the value of a Content-Type header.
func (s *splitter) contentType(value string) {
	t := tokenizer{s: value}
	first, ok := t.next()
	if !ok || len(first) == 0 {
		s.ctype = leaf
		return
	}
	is := func(i int, word string) bool {
		return len(first) > i && first[i].kind == tokenWord && strings.EqualFold(first[i].text, word)
	}
	sub := func(word string) bool { return len(first) >= 3 && first[1].kind == '/' && is(2, word) }
	switch {
	case is(0, "message"):
		s.ctype = messageOther
		if sub("rfc822") || sub("global") {
			s.ctype = message
		}
	case is(0, "multipart"):
		s.ctype = multipart
		parts := leaf
		if sub("digest") {
			parts = messageDigest
		}
		for {
			p, ok := t.next()
			if !ok {
				return
			}
			if len(p) < 3 || p[0].kind != tokenWord || !strings.EqualFold(p[0].text, "boundary") || p[1].kind != '=' {
				continue
			}
			if len(s.stack) > s.nesting {
				s.tooDeep = true
				continue
			}
			text := p[2].text
			s.stack = append(s.stack, delimiter{text[:min(len(text), s.boundary)], parts})
		}
	default:
		s.ctype = leaf
	}
}

// idle reports whether nothing that is still to come can be a header or begin
// a new segment.
func (s *splitter) idle() bool { return s.state == inBody && len(s.stack) == 0 }
