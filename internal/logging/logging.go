// Package logging makes the daemon's log: lines on standard error (with the
// priorities of sd-daemon(3) where journald reads them), to syslog with
// facility mail, or into a file.
//
// Lines are gathered for a moment and written together, in the background; a
// warning or worse is written at once, with all that came before it.
package logging

import (
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
)

var errUnknownLevel = errors.New("unknown level")

// Log is an open log. Its methods are safe for concurrent use.
type Log struct {
	*zap.Logger
	level zap.AtomicLevel
	sink  *queue
	out   io.Closer
}

// How long lines are gathered, and how many bytes of them.
const (
	gatherFor  = 100 * time.Millisecond
	gatherSize = 64 << 10  // are written at once
	gatherMost = 256 << 10 // nobody adds to more
)

// Open opens the log that cfg asks for. cfg has been validated.
func Open(cfg Config) (*Log, error) { return open(cfg, os.Stderr, "/dev/log") }

func open(cfg Config, stderr *os.File, devlog string) (*Log, error) {
	level, err := cfg.level()
	if err != nil {
		return nil, err
	}
	l := &Log{level: zap.NewAtomicLevelAt(level)}
	terminal := cfg.Output == "stderr" && term.IsTerminal(int(stderr.Fd()))
	enc, plain := encoder(cfg.Format, terminal)
	var c zapcore.Core
	switch path, isFile := strings.CutPrefix(cfg.Output, "file:"); {
	case cfg.Output == "syslog":
		s := &syslogCore{LevelEnabler: l.level, enc: enc, dial: func() (*syslog.Writer, error) {
			return syslog.Dial("unixgram", devlog, syslog.LOG_MAIL|syslog.LOG_INFO, "postern")
		}, fallback: stderr, shared: new(syslogConn)}
		c, l.out = s, s
	case isFile:
		f := &file{path: path}
		if err := f.reopen(); err != nil {
			return nil, fmt.Errorf("logging: %w", err)
		}
		l.out = f
		l.sink = newQueue(f)
		c = core{l.level, enc, plain, l.sink}
	default:
		if onJournal(stderr) {
			enc = prioritised{enc}
			if plain != nil {
				plain.prioritised = true
			}
		}
		if terminal {
			c = zapcore.NewCore(enc, zapcore.Lock(stderr), l.level)
			break
		}
		l.sink = newQueue(stderr)
		c = core{l.level, enc, plain, l.sink}
	}
	l.Logger = zap.New(c, zap.ErrorOutput(zapcore.Lock(stderr)))
	return l, nil
}

// SetLevel changes the level; the name has been validated.
func (l *Log) SetLevel(name string) {
	if level, err := (&Config{Level: name}).level(); err == nil {
		l.level.SetLevel(level)
	}
}

// Close writes what has been gathered and closes the output.
func (l *Log) Close() error {
	var err error
	if l.sink != nil {
		err = l.sink.stop()
	}
	if l.out != nil {
		err = errors.Join(err, l.out.Close())
	}
	return err
}

// encoder returns the encoder of a format, and a faster one for plain lines
// if there is one.
func encoder(format string, terminal bool) (zapcore.Encoder, *plainEncoder) {
	cfg := zapcore.EncoderConfig{
		TimeKey: "ts", LevelKey: "level", NameKey: "logger", MessageKey: "msg",
		EncodeTime: zapcore.RFC3339NanoTimeEncoder, EncodeLevel: zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.SecondsDurationEncoder,
	}
	if format == "console" || format == "auto" && terminal {
		cfg.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		cfg.EncodeLevel = zapcore.CapitalLevelEncoder
		return zapcore.NewConsoleEncoder(cfg), nil
	}
	return zapcore.NewJSONEncoder(cfg), new(plainEncoder)
}

// onJournal reports whether f is the stream to journald that systemd named
// (systemd.exec(5), JOURNAL_STREAM).
func onJournal(f *os.File) bool {
	var dev, ino uint64
	if _, err := fmt.Sscanf(os.Getenv("JOURNAL_STREAM"), "%d:%d", &dev, &ino); err != nil {
		return false
	}
	st, err := f.Stat()
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Dev == dev && sys.Ino == ino
}

// prioritised puts "<N>" in front of each line (sd-daemon(3)).
type prioritised struct{ zapcore.Encoder }

// Clone implements [zapcore.Encoder].
func (p prioritised) Clone() zapcore.Encoder { return prioritised{p.Encoder.Clone()} }

var buffers = buffer.NewPool()

// EncodeEntry implements [zapcore.Encoder].
func (p prioritised) EncodeEntry(e zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	inner, err := p.Encoder.EncodeEntry(e, fields)
	if err != nil {
		return nil, err
	}
	defer inner.Free()
	out := buffers.Get()
	prefix := priority(e.Level)
	for line := range strings.Lines(inner.String()) {
		out.AppendString(prefix)
		out.AppendString(line)
	}
	return out, nil
}

func priority(l zapcore.Level) string {
	switch {
	case l >= zapcore.DPanicLevel:
		return "<2>"
	case l == zapcore.ErrorLevel:
		return "<3>"
	case l == zapcore.WarnLevel:
		return "<4>"
	case l == zapcore.InfoLevel:
		return "<6>"
	}
	return "<7>"
}

// core hands lines to a queue, which writes them together a little later. A
// line that is a warning or worse is written before Write returns, behind all
// that came before it.
type core struct {
	zapcore.LevelEnabler
	enc   zapcore.Encoder
	plain *plainEncoder // nil: enc alone knows the form
	queue *queue
}

// With implements [zapcore.Core].
func (c core) With(fields []zapcore.Field) zapcore.Core {
	enc := c.enc.Clone()
	for _, f := range fields {
		f.AddTo(enc)
	}
	return core{c.LevelEnabler, enc, nil, c.queue}
}

// Check implements [zapcore.Core].
func (c core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements [zapcore.Core].
func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if c.plain != nil {
		l := lines.Get().(*Line)
		defer lines.Put(l)
		var ok bool
		if l.buf, ok = c.plain.appendLine(l.buf[:0], &e, fields); ok {
			return c.queue.take(l.buf, e.Level)
		}
	}
	b, err := c.enc.EncodeEntry(e, fields)
	if err != nil {
		return err
	}
	defer b.Free()
	return c.queue.take(b.Bytes(), e.Level)
}

// Sync implements [zapcore.Core].
func (c core) Sync() error { return c.queue.flush() }

// queue gathers lines. A full queue is written by the one who finds it full:
// it never grows, and never drops a line.
type queue struct {
	out io.Writer

	mu    sync.Mutex // guards the lines; never held while writing
	lines []byte
	armed bool
	err   error // of the last write in the background

	writing sync.Mutex // taken before mu; one writes at a time, so order is kept
	spare   []byte

	timer *time.Timer
	kick  chan struct{}
	stopc chan struct{}
	once  sync.Once
	done  sync.WaitGroup
}

func newQueue(out io.Writer) *queue {
	q := &queue{
		out: out, lines: make([]byte, 0, gatherMost), spare: make([]byte, 0, gatherMost),
		kick: make(chan struct{}, 1), stopc: make(chan struct{}), timer: time.NewTimer(time.Hour),
	}
	q.timer.Stop()
	q.done.Go(q.run)
	return q
}

// run writes in the background: when there are many lines, or they are old.
func (q *queue) run() {
	for {
		select {
		case <-q.kick:
		case <-q.timer.C:
		case <-q.stopc:
			return
		}
		if err := q.flush(); err != nil {
			q.mu.Lock()
			q.err = err
			q.mu.Unlock()
		}
	}
}

// take takes a line, for later or, if its level is grave, for now. It does not
// keep line.
func (q *queue) take(line []byte, level zapcore.Level) error {
	err := q.add(line)
	if level >= zapcore.WarnLevel {
		return errors.Join(err, q.flush())
	}
	return err
}

func (q *queue) add(line []byte) error {
	q.mu.Lock()
	for len(q.lines) > 0 && len(q.lines)+len(line) > gatherMost {
		q.mu.Unlock()
		if err := q.flush(); err != nil { // the disk is slower than the lines come
			return err
		}
		q.mu.Lock()
	}
	before := len(q.lines)
	q.lines = append(q.lines, line...)
	many, arm := before < gatherSize && len(q.lines) >= gatherSize, !q.armed
	q.armed = true
	err := q.err
	q.err = nil
	q.mu.Unlock()
	if many {
		select {
		case q.kick <- struct{}{}:
		default: // it is coming
		}
	}
	if arm {
		q.timer.Reset(gatherFor)
	}
	return err
}

// flush writes all lines that there are.
func (q *queue) flush() error {
	q.writing.Lock()
	defer q.writing.Unlock()
	q.mu.Lock()
	b := q.lines
	q.lines, q.spare, q.armed = q.spare[:0], nil, false
	q.mu.Unlock()
	var err error
	if len(b) > 0 {
		_, err = q.out.Write(b)
	}
	if cap(b) > 2*gatherMost {
		b = make([]byte, 0, gatherMost) // one line was very long
	}
	q.spare = b
	return err
}

// stop writes what is there and ends the background. Lines that come later
// are written when somebody flushes.
func (q *queue) stop() error {
	q.once.Do(func() { close(q.stopc) })
	q.done.Wait()
	q.timer.Stop()
	return q.flush()
}

// file is a log file that is made anew when somebody has moved it away.
type file struct {
	path   string
	mu     sync.Mutex
	f      *os.File
	looked time.Time
}

func (f *file) reopen() error {
	n, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	if f.f != nil {
		_ = f.f.Close() // nothing is buffered in it
	}
	f.f = n
	return nil
}

// Write implements io.Writer.
func (f *file) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.looked) > time.Second {
		f.looked = now
		here, err1 := f.f.Stat()
		there, err2 := os.Stat(f.path)
		if err1 != nil || err2 != nil || !os.SameFile(here, there) {
			_ = f.reopen() // the old file still takes the lines
		}
	}
	return f.f.Write(p)
}

// Close implements io.Closer.
func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.f.Close()
}

// syslogCore sends each line to syslog with the severity of its level. While
// there is no syslog, lines go to standard error.
type syslogCore struct {
	zapcore.LevelEnabler
	enc      zapcore.Encoder
	dial     func() (*syslog.Writer, error)
	fallback io.Writer
	shared   *syslogConn
}

type syslogConn struct {
	mu sync.Mutex
	w  *syslog.Writer
}

// With implements [zapcore.Core].
func (c *syslogCore) With(fields []zapcore.Field) zapcore.Core {
	n := *c
	n.enc = c.enc.Clone()
	for _, f := range fields {
		f.AddTo(n.enc)
	}
	return &n
}

// Check implements [zapcore.Core].
func (c *syslogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements [zapcore.Core].
func (c *syslogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	buf, err := c.enc.EncodeEntry(e, fields)
	if err != nil {
		return err
	}
	defer buf.Free()
	line := strings.TrimRight(buf.String(), "\n")
	c.shared.mu.Lock()
	defer c.shared.mu.Unlock()
	if c.shared.w == nil {
		if c.shared.w, err = c.dial(); err != nil {
			c.shared.w = nil
			_, werr := io.WriteString(c.fallback, line+"\n")
			return werr
		}
	}
	w := c.shared.w
	switch {
	case e.Level >= zapcore.DPanicLevel:
		err = w.Crit(line)
	case e.Level == zapcore.ErrorLevel:
		err = w.Err(line)
	case e.Level == zapcore.WarnLevel:
		err = w.Warning(line)
	case e.Level == zapcore.InfoLevel:
		err = w.Info(line)
	default:
		err = w.Debug(line)
	}
	if err != nil {
		_, err = io.WriteString(c.fallback, line+"\n")
	}
	return err
}

// Sync implements [zapcore.Core].
func (c *syslogCore) Sync() error { return nil }

// Close implements io.Closer.
func (c *syslogCore) Close() error {
	c.shared.mu.Lock()
	defer c.shared.mu.Unlock()
	if c.shared.w == nil {
		return nil
	}
	return c.shared.w.Close()
}
