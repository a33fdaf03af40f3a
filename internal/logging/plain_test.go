package logging

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// asZap holds a line to what the library makes of it.
func asZap(t *testing.T, p *plainEncoder, e zapcore.Entry, fields ...zapcore.Field) {
	t.Helper()
	enc, _ := encoder("json", false)
	if p.prioritised {
		enc = prioritised{enc}
	}
	want, err := enc.EncodeEntry(e, fields)
	if err != nil {
		t.Fatal(err)
	}
	got, ok := p.appendLine(nil, &e, fields)
	if !ok {
		t.Errorf("not taken as plain: %s", want)
	} else if string(got) != want.String() {
		t.Errorf("line\n%swant\n%s", got, want)
	}
}

func TestPlainLinesAreAsTheLibraryWritesThem(t *testing.T) {
	var p plainEncoder
	now := time.Date(2025, 3, 30, 1, 59, 59, 123456789, time.UTC)
	for _, s := range []string{
		"", "a", "plain text", `a "quoted" text`, `back\slash`, "line\nend\r\ttab", "\x00\x01\x1f\x7f", "grüße", "\u2028", "bad \xff\xc3 utf-8", "\xed\xa0\x80",
		"exactly8", "exactly8\n", "1234567\"", "long enough for several words of eight bytes each", "long enough for several words of eight byt\x80s each",
	} {
		asZap(t, &p, zapcore.Entry{Time: now, Message: s, LoggerName: s}, zap.String("text", s), zap.String(s, "key"))
	}
	for _, d := range []time.Duration{
		0, 1, 9, 10, 999, 1000, 1001, 12345, 100_000, 1_000_000, 5_500_000, 123_456_789, 999_999_999, time.Second, time.Second + 1, 4350 * time.Millisecond,
		time.Hour + 123456789, 1_200_000_077, 1e15 - 1, 1e15, 1e15 + 1, -1, -time.Minute, math.MaxInt64, math.MinInt64,
	} {
		asZap(t, &p, zapcore.Entry{Time: now.Add(d), Message: "m"}, zap.Duration("took", d))
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		berlin = time.FixedZone("", 2*60*60)
	}
	for _, at := range []time.Time{
		now, now.Add(211), now.Add(time.Second), now.In(berlin), now.Add(2 * time.Second).In(berlin), now.In(time.FixedZone("x", -3*3600-1800)), now.Truncate(time.Second), time.Unix(0, 0),
	} {
		asZap(t, &p, zapcore.Entry{Time: at, Message: "m"})
	}
	for level := zapcore.DebugLevel; level <= zapcore.FatalLevel; level++ {
		asZap(t, &p, zapcore.Entry{Time: now, Message: "m", Level: level}, zap.Bool("yes", true), zap.Bool("no", false), zap.Skip(),
			zap.Int("int", -7), zap.Int64("int64", math.MinInt64), zap.Int32("int32", math.MinInt32))
		asZap(t, &plainEncoder{prioritised: true}, zapcore.Entry{Time: now, Message: "m\nn", Level: level})
	}
}

func TestOtherLinesAreLeftToTheLibrary(t *testing.T) {
	now := time.Now()
	for _, e := range []zapcore.Entry{{}, {Time: now, Stack: "stack"}, {Time: now, Caller: zapcore.EntryCaller{Defined: true}}} {
		if _, ok := new(plainEncoder).appendLine(nil, &e, nil); ok {
			t.Errorf("%+v is taken as plain", e)
		}
	}
	for _, f := range []zapcore.Field{zap.Error(errors.New("x")), zap.Strings("s", nil), zap.Any("a", struct{}{}), zap.Float64("f", 1), zap.Namespace("n")} {
		if _, ok := new(plainEncoder).appendLine(nil, &zapcore.Entry{Time: now}, []zapcore.Field{f}); ok {
			t.Errorf("%+v is taken as plain", f)
		}
	}
}

func FuzzPlainLine(f *testing.F) {
	f.Add("key", "value", int64(1), int64(0))
	f.Add("k\"", "a\nb\\\xff", int64(-5), int64(1e18))
	f.Add("seven b", "grüße aus Köln, 8 bytes", int64(1_200_000_000), int64(1743292799_000000001))
	f.Fuzz(func(t *testing.T, key, value string, took, at int64) {
		asZap(t, new(plainEncoder), zapcore.Entry{Time: time.Unix(0, at).UTC(), Message: value, LoggerName: key},
			zap.String(key, value), zap.Duration("took", time.Duration(took)))
	})
}

func TestALineIsAsByFields(t *testing.T) {
	for _, journal := range []bool{false, true} {
		var out strings.Builder
		q := newQueue(&out)
		enc, plain := encoder("json", false)
		if journal {
			enc, plain.prioritised = prioritised{enc}, true
		}
		c := core{zapcore.InfoLevel, enc, plain, q}
		e := zapcore.Entry{Time: time.Unix(1e9, 1500), Message: "decision", LoggerName: "x"}
		if err := c.Write(e, []zapcore.Field{
			zap.String("text", "a \"b\"\n"), zap.String("client", "2001:db8::1"), zap.String("zoned", `fe80::1%"`), zap.Duration("took", 1234),
		}); err != nil {
			t.Fatal(err)
		}
		l := Begin(c, &e)
		l.Text("text", "a \"b\"\n")
		l.Addr("client", netip.MustParseAddr("2001:db8::1"))
		l.Addr("zoned", netip.MustParseAddr("fe80::1").WithZone(`"`))
		l.Seconds("took", 1234)
		if err := l.End(); err != nil {
			t.Fatal(err)
		}
		if err := q.stop(); err != nil {
			t.Fatal(err)
		}
		if both := strings.SplitAfter(out.String(), "\n"); len(both) != 3 || both[0] != both[1] {
			t.Errorf("by fields and by itself:\n%s", out.String())
		}
	}
}

func TestLinesThatAreNotMadeHere(t *testing.T) {
	f, _ := stderrFile(t)
	for format, made := range map[string]bool{"json": true, "console": false} {
		l, err := open(Config{"info", format, "stderr"}, f, "")
		if err != nil {
			t.Fatal(err)
		}
		if line := Begin(l.Core(), &zapcore.Entry{Time: time.Now()}); (line != nil) != made {
			t.Errorf("%s: %v", format, line)
		}
		if Begin(l.Core(), &zapcore.Entry{}) != nil || Begin(l.With(zap.Int("x", 1)).Core(), &zapcore.Entry{Time: time.Now()}) != nil {
			t.Errorf("%s: a line without a time, or with fields before it", format)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if Begin(zapcore.NewNopCore(), &zapcore.Entry{Time: time.Now()}) != nil {
		t.Error("a line of another log")
	}
}
