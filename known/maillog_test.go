package known

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// logNow is when the logs of these tests are read.
var logNow = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func reader() *LogReader {
	return &LogReader{
		Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:1::/48")},
		Logins:   true, Local: true, Now: logNow, In: time.UTC,
	}
}

// read returns what a log tells, as "user>to".
func read(t *testing.T, r *LogReader, logs ...string) (out []string) {
	t.Helper()
	for _, log := range logs {
		if err := r.Read(strings.NewReader(log), func(w Written) bool {
			out = append(out, w.User+">"+w.To)
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// mail is a whole message in the log: how it came, and how it went.
func mail(id, came, from string, went ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Nov 27 09:00:00 mx %s\n", came)
	fmt.Fprintf(&b, "Nov 27 09:00:00 mx postfix/cleanup[9]: %s: message-id=<x@y>\n", id)
	fmt.Fprintf(&b, "Nov 27 09:00:00 mx postfix/qmgr[2]: %s: from=<%s>, size=700, nrcpt=%d (queue active)\n", id, from, len(went))
	for _, w := range went {
		fmt.Fprintf(&b, "Nov 27 09:00:01 mx postfix/%s\n", w)
	}
	fmt.Fprintf(&b, "Nov 27 09:00:02 mx postfix/qmgr[2]: %s: removed\n", id)
	return b.String()
}

func TestLog(t *testing.T) {
	const id = "4Xz1Wl3b9Qz2Rf"
	login := "postfix/submission/smtpd[1]: " + id + ": client=pc.example[203.0.113.9], sasl_method=PLAIN, sasl_username=ann"
	sent := "smtp[7]: " + id + ": to=<bob@example.net>, relay=mx.example.net[198.51.100.25]:25, delay=1.1, delays=0/0/1/0, dsn=2.0.0, status=sent (250 2.0.0 Ok)"
	want := []string{"ann@example.org>bob@example.net"}
	client := func(s string) string { return "postfix/smtpd[1]: " + id + ": client=" + s }
	for _, tt := range []struct {
		what, log string
		want      []string
	}{
		{"a login", mail(id, login, "ann@example.org", sent), want},
		{"a stranger", mail(id, client("mx.bot.example[203.0.113.9]"), "ann@example.org", sent), nil},
		{"a stranger whose name has our address", mail(id, client("a[192.0.2.7].bot.example[203.0.113.9]"), "ann@example.org", sent), nil},
		{"a stranger with an empty login", mail(id, client("mx.bot.example[203.0.113.9], sasl_method=PLAIN, sasl_username="), "ann@example.org", sent), nil},
		{"only the sender of AUTH=", mail(id, client("mx.bot.example[203.0.113.9], sasl_sender=ann@example.org"), "ann@example.org", sent), nil},
		{"a host of ours", mail(id, client("web.example.org[192.0.2.7]"), "ann@example.org", sent), want},
		{"with its port", mail(id, client("web.example.org[192.0.2.7]:4711"), "ann@example.org", sent), want},
		{"with IPv6", mail(id, client("web.example.org[2001:db8:1::7]"), "ann@example.org", sent), want},
		{"IPv6 of others", mail(id, client("web.example.org[2001:db8:2::7]"), "ann@example.org", sent), nil},
		{"unknown", mail(id, client("unknown[unknown]"), "ann@example.org", sent), nil},
		{"no address", mail(id, client("localhost"), "ann@example.org", sent), nil},
		{"this host", mail(id, "postfix/pickup[1]: "+id+": uid=1000 from=<ann>", "ann@example.org", sent), want},
		{"handed on from another queue", mail(id, client("localhost[127.0.0.1], orig_queue_id=4Xa, orig_client=pc[192.0.2.7]"), "ann@example.org", sent), nil},
		{"another instance", strings.ReplaceAll(mail(id, login, "ann@example.org", sent), "postfix/", "postfix-out/"), want},
		{"another program", strings.ReplaceAll(mail(id, login, "ann@example.org", sent), "postfix/", "exim/"), nil},
		{"deferred", mail(id, login, "ann@example.org", strings.Replace(sent, "status=sent", "status=deferred", 1)), nil},
		{"bounced", mail(id, login, "ann@example.org", strings.Replace(sent, "status=sent", "status=bounced", 1)), nil},
		{"sent, says the other end", mail(id, login, "ann@example.org", strings.Replace(sent, "status=sent (250 2.0.0 Ok)", "status=bounced (550 x, status=sent (y)", 1)), nil},
		{"delivered here", mail(id, login, "ann@example.org", strings.Replace(sent, "smtp[7]", "lmtp[7]", 1)), nil},
		{"two recipients", mail(id, login, "ann@example.org", sent, strings.Replace(sent, "bob@", "eve@", 1)), append(want[:1:1], "ann@example.org>eve@example.net")},
		{"an alias of ours", mail(id, login, "ann@example.org", strings.Replace(sent, ", relay", ", orig_to=<x@example.org>, relay", 1)), want},
		{"a quoted recipient", mail(id, login, "ann@example.org", strings.Replace(sent, "bob@", `"b > b"@`, 1)), []string{"ann@example.org>b > b@example.net"}},
		{"a bounce", mail(id, login, "", sent), []string{">bob@example.net"}}, // the daemon passes it over
		{"a short id", strings.ReplaceAll(mail(id, login, "ann@example.org", sent), id, "0A1B2C3D4E"), want},
		{"no id", mail(id, login, "ann@example.org", strings.ReplaceAll(sent, id, "NOQUEUE")), nil},
		{"no sender", strings.ReplaceAll(mail(id, login, "ann@example.org", sent), "from=<ann@example.org>, ", ""), nil},
		{"a refusal that looks like a client", strings.Replace(mail(id, login, "ann@example.org", sent), id+": client=", id+": reject: RCPT from x: client=", 1), nil},
		{"with CRLF", strings.ReplaceAll(mail(id, login, "ann@example.org", sent), "\n", "\r\n"), want},
		{"without the last line end", strings.TrimSuffix(mail(id, login, "ann@example.org", sent), "\n"), want},
	} {
		r := reader()
		if got := read(t, r, tt.log); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
		if r.Seen.Unread != 0 {
			t.Errorf("%s: %+v", tt.what, r.Seen)
		}
		if len(r.messages) != 0 {
			t.Errorf("%s: %d messages are left", tt.what, len(r.messages))
		}
	}
}

func TestLogSettings(t *testing.T) {
	const id = "4Xz1Wl3b9Qz2Rf"
	sent := "smtp[7]: " + id + ": to=<bob@example.net>, relay=x, status=sent (250)"
	login := mail(id, "postfix/smtpd[1]: "+id+": client=pc[203.0.113.9], sasl_username=ann", "ann@example.org", sent)
	local := mail(id, "postfix/pickup[1]: "+id+": uid=1000 from=<ann>", "ann@example.org", sent)
	for _, tt := range []struct {
		what          string
		logins, local bool
		n             int
	}{{"both", true, true, 2}, {"logins", true, false, 1}, {"local", false, true, 1}, {"none", false, false, 0}} {
		r := reader()
		r.Logins, r.Local = tt.logins, tt.local
		if got := read(t, r, login, local); len(got) != tt.n {
			t.Errorf("%s: %q", tt.what, got)
		}
		if r.Seen.Messages != tt.n || r.Seen.Strangers != 2-tt.n || r.Seen.Sent != tt.n || r.Seen.Lines != 10 {
			t.Errorf("%s: %+v", tt.what, r.Seen)
		}
	}
}

// A message may begin in one log and end in the next, and a short queue id is
// another message's later.
func TestLogsInTurn(t *testing.T) {
	const id = "0A1B2C3D4E"
	whole := mail(id, "postfix/smtpd[1]: "+id+": client=pc[203.0.113.9], sasl_username=ann", "ann@example.org", "smtp[7]: "+id+": to=<bob@example.net>, relay=x, status=sent (250)")
	for cut := range whole {
		if whole[cut] != '\n' {
			continue
		}
		if got := read(t, reader(), whole[:cut+1], whole[cut+1:]); len(got) != 1 {
			t.Errorf("cut at %d: %q", cut, got)
		}
	}
	own, _, _ := strings.Cut(whole, "Nov 27 09:00:01") // its end is missing
	stranger := strings.ReplaceAll(whole, "client=pc[203.0.113.9], sasl_username=ann", "client=bot[203.0.113.66]")
	if got := read(t, reader(), own, stranger); got != nil {
		t.Errorf("%q: the stranger's message was taken for ours", got)
	}
}

// What is remembered is bounded, and the oldest goes.
func TestManyMessages(t *testing.T) {
	r := reader()
	r.messages = map[string]*message{}
	for i := range maxMessages + 10 {
		r.message(fmt.Sprintf("%010X", i))
	}
	if len(r.messages) != maxMessages || r.Seen.Forgotten != 10 || r.messages[fmt.Sprintf("%010X", 9)] != nil || r.messages[fmt.Sprintf("%010X", 10)] == nil {
		t.Errorf("%d messages, %+v", len(r.messages), r.Seen)
	}
	// Those that have ended take no room.
	r = reader()
	r.messages = map[string]*message{}
	for i := range 5 * maxMessages {
		id := fmt.Sprintf("%010X", i)
		r.message(id)
		delete(r.messages, id)
	}
	if len(r.order) > 4*maxMessages+1 || r.Seen.Forgotten != 0 {
		t.Errorf("%d in the order, %+v", len(r.order), r.Seen)
	}
}

func TestLongLines(t *testing.T) {
	r := reader()
	got := read(t, r, "Nov 27 09:00:00 mx postfix/smtpd[1]: "+strings.Repeat("x", 3*(64<<10))+"\n"+
		mail("0A1B2C3D4E", "postfix/pickup[1]: 0A1B2C3D4E: uid=1 from=<x>", "ann@example.org", "smtp[7]: 0A1B2C3D4E: to=<bob@example.net>, relay=x, status=sent (250)")+
		strings.Repeat("y", 2*(64<<10)))
	if len(got) != 1 || r.Seen.Lines != 7 || r.Seen.Unread != 2 {
		t.Errorf("%q %+v", got, r.Seen)
	}
}

func TestReadingEndsWhenTold(t *testing.T) {
	one := mail("0A1B2C3D4E", "postfix/pickup[1]: 0A1B2C3D4E: uid=1 from=<x>", "ann@example.org", "smtp[7]: 0A1B2C3D4E: to=<bob@example.net>, relay=x, status=sent (250)")
	n := 0
	if err := reader().Read(strings.NewReader(one+one), func(Written) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}

// Whatever a log holds, only what a line of a client with a login, of this host
// or of our network has begun is taken, and a line cut anywhere is no other
// line.
func FuzzLog(f *testing.F) {
	const id = "4Xz1Wl3b9Qz2Rf"
	f.Add(mail(id, "postfix/smtpd[1]: "+id+": client=pc[203.0.113.9], sasl_username=ann", "ann@example.org", "smtp[7]: "+id+`: to=<"a\"> b"@example.net>, relay=x, status=sent (250)`))
	f.Add(mail(id, "postfix/pickup[1]: "+id+": uid=0 from=<root>", "", "smtp[7]: "+id+": to=<>, relay=x, status=sent (250)"))
	f.Add("2026-11-27T09:01:02+0100 mx postfix/smtpd[1]: 0A1B2: client=[[]]")
	f.Add("Nov 27 09:00:00 mx postfix/smtp[1]: [ID 197553 mail.info] 0A1B2: to=<a@b>, status=sent (")
	f.Add("9999-99-99T99:99:99Z x]: \n\n\x00[]: : ")
	f.Fuzz(func(t *testing.T, log string) {
		r := reader()
		got := read(t, r, log)
		if len(got) > 0 && !strings.Contains(log, "sasl_username=") && !strings.Contains(log, "pickup") && !strings.Contains(log, "192.0.2.") && !strings.Contains(strings.ToLower(log), "2001:") && !strings.Contains(log, ":c000:2") {
			t.Errorf("%q of %q", got, log)
		}
		if r.Seen.Sent != len(got) || r.Seen.Unread > r.Seen.Lines || len(got) > r.Seen.Lines {
			t.Errorf("%+v: %q", r.Seen, got)
		}
		half := reader()
		cut := strings.LastIndexByte(log[:len(log)/2], '\n') + 1
		if again := read(t, half, log[:cut], log[cut:]); !reflect.DeepEqual(again, got) || half.Seen != r.Seen {
			t.Errorf("in two parts %q %+v, whole %q %+v", again, half.Seen, got, r.Seen)
		}
	})
}
