package logging

import (
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.uber.org/zap/zapcore"
)

// plainEncoder writes lines whose fields are plain values as the JSON encoder
// of [encoder] does, byte for byte, in a third of its time: the line of a
// decision is most of what a known sender costs beside its system calls. It is
// safe for concurrent use.
type plainEncoder struct {
	prioritised bool // as by the type of that name
	second      atomic.Pointer[second]
}

// second is the text of a moment but for its fraction. The offset of a time
// zone changes between seconds only.
type second struct {
	unix       int64
	loc        *time.Location
	date, zone string
}

// appendLine appends a line, or reports false when it is not plain.
func (p *plainEncoder) appendLine(b []byte, e *zapcore.Entry, fields []zapcore.Field) ([]byte, bool) {
	b, ok := p.appendHead(b, e)
	if !ok {
		return b, false
	}
	for i := range fields {
		f := &fields[i]
		if f.Type == zapcore.SkipType {
			continue
		}
		b = append(b, `,"`...)
		b = appendEscaped(b, f.Key)
		switch f.Type {
		case zapcore.StringType:
			b = append(b, `":"`...)
			b = appendEscaped(b, f.String)
			b = append(b, '"')
		case zapcore.DurationType:
			b = append(b, `":`...)
			b = appendSeconds(b, time.Duration(f.Integer))
		case zapcore.BoolType:
			b = append(b, `":`...)
			b = strconv.AppendBool(b, f.Integer == 1)
		case zapcore.Int64Type, zapcore.Int32Type:
			b = append(b, `":`...)
			b = strconv.AppendInt(b, f.Integer, 10)
		default:
			return b, false
		}
	}
	return append(b, '}', '\n'), true
}

// appendHead appends what every line begins with.
func (p *plainEncoder) appendHead(b []byte, e *zapcore.Entry) ([]byte, bool) {
	if e.Time.IsZero() || e.Caller.Defined || e.Stack != "" {
		return b, false
	}
	if p.prioritised {
		b = append(b, priority(e.Level)...)
	}
	b = append(b, `{"level":"`...)
	b = append(b, e.Level.String()...)
	b = append(b, `","ts":"`...)
	b = p.appendTime(b, e.Time)
	if e.LoggerName != "" {
		b = append(b, `","logger":"`...)
		b = appendEscaped(b, e.LoggerName)
	}
	b = append(b, `","msg":"`...)
	b = appendEscaped(b, e.Message)
	b = append(b, '"')
	return b, true
}

// Line is a line of plain values while it is made, for those who cannot afford
// a list of fields. It is for one goroutine.
type Line struct {
	queue *queue
	level zapcore.Level
	buf   []byte
}

var lines = sync.Pool{New: func() any { return &Line{buf: make([]byte, 0, 1024)} }}

// Begin begins a line of c, whose level e's is. It returns nil when c's lines
// are not made here: then the line is logged in the ordinary way.
func Begin(c zapcore.Core, e *zapcore.Entry) *Line {
	own, ok := c.(core)
	if !ok || own.plain == nil {
		return nil
	}
	l := lines.Get().(*Line)
	if l.buf, ok = own.plain.appendHead(l.buf[:0], e); !ok {
		lines.Put(l)
		return nil
	}
	l.queue, l.level = own.queue, e.Level
	return l
}

// Text adds a field. The key must be one that stands for itself in JSON.
func (l *Line) Text(key, value string) {
	b := append(l.buf, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':', '"')
	l.buf = append(appendEscaped(b, value), '"')
}

// Addr adds a valid address. The key is as for Text.
func (l *Line) Addr(key string, a netip.Addr) {
	b := append(l.buf, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':', '"')
	if a.Zone() != "" {
		l.buf = append(appendEscaped(b, a.String()), '"')
		return
	}
	l.buf = append(a.AppendTo(b), '"')
}

// Seconds adds a duration. The key is as for Text.
func (l *Line) Seconds(key string, d time.Duration) {
	b := append(l.buf, ',', '"')
	b = append(b, key...)
	l.buf = appendSeconds(append(b, '"', ':'), d)
}

// Int adds a number. The key is as for Text.
func (l *Line) Int(key string, n int) {
	b := append(l.buf, ',', '"')
	b = append(b, key...)
	l.buf = strconv.AppendInt(append(b, '"', ':'), int64(n), 10)
}

// End logs the line, which is not to be used any more.
func (l *Line) End() error {
	l.buf = append(l.buf, '}', '\n')
	err := l.queue.take(l.buf, l.level)
	if cap(l.buf) <= 16<<10 {
		lines.Put(l)
	}
	return err
}

// appendTime appends t as time.RFC3339Nano has it.
func (p *plainEncoder) appendTime(b []byte, t time.Time) []byte {
	s := p.second.Load()
	if s == nil || s.unix != t.Unix() || s.loc != t.Location() {
		s = &second{t.Unix(), t.Location(), t.Format("2006-01-02T15:04:05"), t.Format("Z07:00")}
		p.second.Store(s)
	}
	b = append(b, s.date...)
	b = appendFraction(b, t.Nanosecond())
	return append(b, s.zone...)
}

// appendSeconds appends d in seconds, in the fewest digits.
func appendSeconds(b []byte, d time.Duration) []byte {
	if d < 0 || d >= 1e15 { // up to 15 digits are the same through a float64
		return strconv.AppendFloat(b, float64(d)/float64(time.Second), 'f', -1, 64)
	}
	b = strconv.AppendInt(b, int64(d/time.Second), 10)
	return appendFraction(b, int(d%time.Second))
}

// appendFraction appends a point and the digits of n nanoseconds without the
// zeros at their end; nothing for 0.
func appendFraction(b []byte, n int) []byte {
	if n == 0 {
		return b
	}
	digits := 9
	for n%1000 == 0 {
		n, digits = n/1000, digits-3
	}
	for n%10 == 0 {
		n, digits = n/10, digits-1
	}
	var text [10]byte
	text[0] = '.'
	for i := digits; i > 0; i-- {
		text[i], n = byte('0'+n%10), n/10
	}
	return append(b, text[:digits+1]...)
}

// Bytes that all hold the same.
const (
	ones     = 0x0101010101010101
	highBits = 0x80 * ones
	blanks   = ' ' * ones
	quotes   = '"' * ones
	slashes  = '\\' * ones
)

// appendEscaped appends s as it stands in a JSON string.
func appendEscaped(b []byte, s string) []byte {
	i := 0
	for ; i+8 <= len(s); i += 8 {
		x := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		// A high bit shows where a byte is no ASCII, a control, a quote or a
		// backslash: below zero once something is taken from it.
		if (x|(x-blanks)|((x^quotes)-ones)|((x^slashes)-ones))&highBits != 0 {
			return appendEscapes(b, s, i)
		}
	}
	for ; i < len(s); i++ {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			return appendEscapes(b, s, i)
		}
	}
	return append(b, s...)
}

// appendEscapes is appendEscaped for an s of which the first i bytes stand for
// themselves.
func appendEscapes(b []byte, s string, i int) []byte {
	const hex = "0123456789abcdef"
	b = append(b, s[:i]...)
	for i < len(s) {
		c := s[i]
		switch {
		case c >= utf8.RuneSelf:
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(b, `\ufffd`...)
			} else {
				b = append(b, s[i:i+size]...)
			}
			i += size
			continue
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= ' ':
			b = append(b, c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
	}
	return b
}
