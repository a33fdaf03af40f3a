package chaos

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"postern/internal/dnstest"
	"postern/internal/policytest"
)

// Somebody makes up triplets as fast as they can: the room stays as it is, who
// is known stays known, and a newcomer from elsewhere is not pushed out by those
// of one network.
func TestFloodIsBounded(t *testing.T) {
	t.Parallel()
	const room = 1000
	w := newWorld(t, &fault{edit: func(text string) string {
		return strings.Replace(text, "[store]\n", fmt.Sprintf("[store]\nmax_waiting = %d\nmax_entries = 1000000\n", room), 1)
	}})
	known := w.acquaint()
	a := &doorAsker{socket: w.d.socket()}
	defer a.close()
	elsewhere := someone(newcomer)
	if v, text := a.ask(elsewhere); v != delayed {
		t.Fatalf("a newcomer is %s: %s", v, text)
	}
	came := time.Now()
	var asked atomic.Int64
	var wg sync.WaitGroup
	// A harvest of addresses from one network, whose HELO names change.
	for i := range 4 {
		wg.Go(func() {
			a := &doorAsker{socket: w.d.socket()}
			defer a.close()
			for n := range room / 2 {
				c := &contact{kind: newcomer, client: fmt.Sprintf("192.0.2.%d", n%256), sender: fmt.Sprintf("f%d.%d@flood.example", i, n), recipient: fmt.Sprintf("guess%d.%d@example.com", i, n), helo: fmt.Sprintf("h%d.flood.example", n)}
				w.judge(a, c, nothing)
				asked.Add(1)
			}
		})
	}
	wg.Wait()
	st, ok := w.d.store()
	if !ok || st.Room.Waiting > room || st.Room.PushedOut == 0 {
		t.Errorf("after %d triplets: %+v", asked.Load(), st)
	}
	time.Sleep(time.Until(came.Add(delay + delay/2)))
	if v, text := a.ask(elsewhere); v != passed {
		t.Errorf("a newcomer from elsewhere that comes back is %s: %s", v, text)
	}
	for _, c := range known {
		w.judge(a, c, nothing)
	}
	w.check(t)
	w.d.stop()
}

// Peers that write or read slowly, or not at all, at every door: who is known is
// answered beside them.
func TestSlowPeersHarmNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &fault{mount: func(w *world, _ string) {
		if err := os.WriteFile(filepath.Join(w.dir, "t"), []byte("192.0.2.0/24 x\n"), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}, config: "[milter]\nlisten = [\"unix:{dir}/milter.sock\"]\n[lookup]\nlisten = [\"unix:{dir}/lookup.sock\"]\n[tables.t]\nsource = \"cidr:{dir}/t\"\n"})
	known := w.acquaint()
	end := make(chan struct{})
	var wg sync.WaitGroup
	request := policytest.Sample().With("client_address", "203.0.113.9").Bytes()
	negotiation := append([]byte{0, 0, 0, 13, 'O', 0, 0, 0, 6}, make([]byte, 8)...)
	for door, message := range map[string][]byte{
		"policy": request, "milter": negotiation, "lookup": []byte("3:t a,"), "admin": []byte("GET /metrics HTTP/1.1\r\nHost: postern\r\n\r\n"),
	} {
		for i := range 25 {
			c, err := net.Dial("unix", filepath.Join(w.dir, door+".sock"))
			if err != nil {
				t.Fatalf("%s: %v", door, err)
			}
			t.Cleanup(func() { _ = c.Close() }) // it may be closed
			wg.Go(func() {
				if i%2 == 0 { // a byte now and then, and never the last
					for n := 0; ; n++ {
						select {
						case <-end:
							return
						case <-time.After(50 * time.Millisecond):
						}
						if n < len(message)-1 {
							if _, err := c.Write(message[n : n+1]); err != nil {
								return // the daemon has enough of it
							}
						}
					}
				}
				for n := 0; ; n++ { // questions without end, and nobody reads the answers
					if n == 3000 { // enough to fill what is between them
						<-end
						return
					}
					_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // a full buffer is what is wanted
					if _, err := c.Write(message); err != nil {
						if ne, ok := err.(net.Error); !ok || !ne.Timeout() { //nolint:errorlint // net returns it bare
							return
						}
						select {
						case <-end:
							return
						case <-time.After(100 * time.Millisecond):
						}
					}
				}
			})
		}
	}
	stop := w.traffic(known, nothing)
	eventually(t, "a hundred answers beside them", func() bool {
		w.tally.mu.Lock()
		defer w.tally.mu.Unlock()
		return w.tally.requests >= 100
	})
	stop()
	close(end)
	w.check(t)
	if _, ok := w.d.store(); !ok {
		t.Error("the administrator's door does not answer")
	}
	wg.Wait()
	w.d.stop()
}

// attacks are what clients say instead of names and addresses.
var attacks = []string{
	"\r", "a\rb", "x\r\r451 4.3.0 forged", "\x1b]0;title\x07", "\x1b[2J\x1b[1;31m", "\x7f\x80\x9f", "\xff\xfe", "\xc0\xaf", "\u2028\u2029", "\u202egro.elpmaxe",
	"action=OK", "%s%n%x", "{sender} {client} {nosuch}", "{{", "\"},\"level\":\"error\",\"msg\":\"forged", "' OR 1=1 --", "$(reboot)", "`reboot`", "../../../../etc/passwd", "<script>alert(1)</script>",
	strings.Repeat("A", 4000), strings.Repeat("a.", 500), strings.Repeat("\u00e9", 900), "a@b@c@d", "@", "<>", "\"a b\"@example.org", "\t", " ", "=", "a=b=c", "[IPv6:::1", "[", "]", "::::", "999.999.999.999",
}

// Whatever a client says in whatever place: the answer is one that Postfix reads
// as it is meant, each line of the log is one value, and the commands show an
// administrator's terminal no control character.
func TestInjection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &fault{
		edit: func(text string) string {
			text = strings.Replace(text, `deny = ["inline:203.0.113.0/24"]`, `deny = ["inline:203.0.113.0/24 550 5.7.1 no: {client} {name} {helo} {sender} {recipient}", "inline:from:bad@example.org 550 5.7.1 {sender}"]`, 1)
			text = strings.Replace(text, "[spf]\nmode = \"off\"", "[spf]\nheader = \"received-spf\"\n[limit]\n[[limit.rule]]\nname = \"helo\"\nkey = [\"helo\"]\nrate = \"1000/1h\"\n[chains.inbound]\nchecks = [\"access\", \"rbl\", \"spf\", \"limit\", \"greylist\"]", 1)
			return strings.Replace(text, "path = \"{dir}/state/journal\"", "path = \"{dir}/state/journal\"\nkeep = \"all\"", 1)
		},
	})
	a := policytest.Dial(t, &net.UnixAddr{Name: w.d.socket(), Net: "unix"})
	n := 0
	for _, client := range []string{"203.0.113.7", "11.99.99.7"} {
		for _, pair := range policytest.Sample() {
			switch pair[0] {
			case "request", "instance", "protocol_state":
				continue
			}
			for _, attack := range attacks {
				req := policytest.Sample().With("client_address", client, pair[0], strings.ReplaceAll(attack, "\n", ""), "instance", fmt.Sprint("x", n))
				if _, err := a.Ask(req); err != nil { // it is strict, as Postfix is
					t.Errorf("%s=%.60q: %v", pair[0], attack, err)
					a = policytest.Dial(t, &net.UnixAddr{Name: w.d.socket(), Net: "unix"})
				}
				n++
			}
		}
	}
	sane := func(what, text string, json bool) {
		t.Helper()
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			if !utf8.ValidString(line) {
				t.Errorf("%s: not UTF-8: %.200q", what, line)
			}
			for _, r := range line {
				// JSON has DEL and the like as they are (RFC 8259 section 7).
				if r < ' ' && (r != '\t' || json) || !json && (unicode.IsControl(r) && r != '\t' || r == '\u202e') {
					t.Errorf("%s: %q in %.200q", what, r, line)
					break
				}
			}
		}
	}
	eventually(t, "the last line", func() bool {
		b, err := os.ReadFile(w.d.logFile())
		return err == nil && strings.Contains(string(b), fmt.Sprintf(`"x%d"`, n-1))
	})
	b, err := os.ReadFile(w.d.logFile())
	if err != nil {
		t.Fatal(err)
	}
	sane("log", string(b), true)
	for line := range bytes.Lines(b) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil || m["msg"] == "forged" || m["level"] == "error" {
			t.Errorf("a line of the log: %v: %.300q", err, line)
		}
	}
	for _, args := range [][]string{{"journal", "search", "--limit", "0"}, {"status"}, {"limit", "list"}, {"greylist", "list"}} {
		out, err := exec.Command(w.d.path, append([]string{"-c", w.d.config}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v\n%.500s", args, err, out)
		}
		sane(strings.Join(args, " "), string(out), false)
	}
	w.d.stop()
}

// hostile are answers of the DNS that are made to do harm.
func hostile() map[string]dnstest.Behavior {
	raw := func(tail func(q []byte) []byte) dnstest.Behavior {
		return dnstest.Behavior{Raw: func(q []byte) [][]byte {
			end := 12
			for end < len(q) && q[end] != 0 {
				end += int(q[end]) + 1
			}
			out := append([]byte(nil), q[:end+5]...)
			out[2], out[3] = 0x81, 0x80
			copy(out[6:12], []byte{0, 1, 0, 0, 0, 0})
			return [][]byte{append(out, tail(out)...)}
		}}
	}
	record := func(name []byte, typ uint16, data []byte) []byte {
		out := append([]byte(nil), name...)
		out = binary.BigEndian.AppendUint16(out, typ)
		out = append(out, 0, 1, 0, 0, 0, 60)
		return append(binary.BigEndian.AppendUint16(out, uint16(len(data))), data...)
	}
	at := func(n int) []byte { return []byte{0xc0 | byte(n>>8), byte(n)} }
	return map[string]dnstest.Behavior{
		"a name that points to itself":  raw(func(q []byte) []byte { return record(at(len(q)), 1, []byte{127, 0, 0, 2}) }),
		"two that point to each other":  raw(func(q []byte) []byte { return record(append(at(len(q)+2), at(len(q))...), 5, at(len(q))) }),
		"a name that points behind":     raw(func([]byte) []byte { return record(at(0x3fff), 1, []byte{127, 0, 0, 2}) }),
		"a CNAME to itself":             raw(func([]byte) []byte { return record(at(12), 5, at(12)) }),
		"an address of three octets":    raw(func([]byte) []byte { return record(at(12), 1, []byte{127, 0, 0}) }),
		"a text longer than its record": raw(func([]byte) []byte { return record(at(12), 16, []byte{255, 'v', '=', 's'}) }),
		"65535 answers and none of them": {Raw: func(q []byte) [][]byte {
			out := append([]byte(nil), q...)
			out[2], out[3] = 0x81, 0x80
			copy(out[6:12], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
			return [][]byte{out}
		}},
		"only a header":              {Raw: func(q []byte) [][]byte { return [][]byte{q[:12]} }},
		"nothing in it":              {Raw: func([]byte) [][]byte { return [][]byte{{}} }},
		"the query":                  {Raw: func(q []byte) [][]byte { return [][]byte{q} }},
		"a hundred false answers":    {Lies: manyLies(100), Truth: true},
		"far more than was asked":    {Lies: []dnstest.Lie{dnstest.LieOversize}},
		"records of somebody else":   {Lies: []dnstest.Lie{dnstest.LieName}},
		"a referral to somebody":     {Lies: []dnstest.Lie{dnstest.LieReferral}},
		"promises that are not kept": {Lies: []dnstest.Lie{dnstest.LieBroken}},
	}
}

func manyLies(n int) []dnstest.Lie {
	out := make([]dnstest.Lie, n)
	for i := range out {
		out[i] = []dnstest.Lie{dnstest.LieID, dnstest.LieGarbage, dnstest.LieQuestion, dnstest.LieCase}[i%4]
	}
	return out
}

// The DNS of a sender's domain, and of a list, answers with malice: nobody is
// refused or deferred for it, and others are answered as always.
func TestHostileDNS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &fault{edit: func(text string) string {
		text = strings.Replace(text, `"bl.example*5"`, `"bl.example*5", "evil.example*5"`, 1)
		return strings.Replace(text, "[spf]\nmode = \"off\"", "[spf]\nheader = \"received-spf\"", 1)
	}})
	// Records that are right and made to be followed for ever.
	for i := range 60 {
		w.dns.Add(fmt.Sprintf("c%d.chain.example. 60 IN CNAME c%d.chain.example.", i, i+1), fmt.Sprintf("i%d.include.example. 60 IN TXT \"v=spf1 include:i%d.include.example include:i%d.include.example -all\"", i, i+1, i+2))
	}
	w.dns.Add("loop.example. 60 IN CNAME loop.example.", "self.example. 60 IN TXT \"v=spf1 include:self.example redirect=self.example\"",
		"giant.example. 60 IN TXT \"v=spf1 "+strings.Repeat("ip4:192.0.2.1 ", 17)+"\""+strings.Repeat(" \""+strings.Repeat("ip4:192.0.2.1 ", 17)+"\"", 200)+"",
		"macro.example. 60 IN TXT \"v=spf1 exists:%{s}%{s}%{s}%{s}%{s}%{s}%{s}%{s}%{s}.%{h}.macro.example -all\"",
		"mx.example. 60 IN TXT \"v=spf1 mx ptr a:loop.example ?all\"")
	for i := range 50 {
		w.dns.Add(fmt.Sprintf("mx.example. 60 IN MX %d c0.chain.example.", i))
	}
	a := &doorAsker{socket: w.d.socket()}
	defer a.close()
	try := func(what, domain string) {
		t.Helper()
		c := someone(newcomer)
		c.sender = fmt.Sprintf("%s@%s", strings.Repeat("l", 60), domain)
		if v, text := a.ask(c); v != passed && v != delayed {
			t.Errorf("%s: %s: %s", what, v, text)
		}
	}
	for _, domain := range []string{"c0.chain.example", "i0.include.example", "loop.example", "self.example", "giant.example", "macro.example", "mx.example"} {
		try(domain, domain)
	}
	n := 0
	for what, b := range hostile() {
		w.dns.BehaveUnder("evil.example", b)
		n++
		try(what, fmt.Sprintf("s%d.evil.example", n)) // its SPF record, and the client's listing
	}
	for _, k := range []kind{denied, listed} {
		if v, text := a.ask(someone(k)); !k.right(v, nothing) {
			t.Errorf("%v, afterwards: %s: %s", k, v, text)
		}
	}
	if b, err := os.ReadFile(w.d.logFile()); err != nil || strings.Contains(string(b), "panic") {
		t.Errorf("the log holds a panic: %v", err)
	}
	w.d.stop()
}

// Names that a command or a call gets are names, and no ways to files.
func TestPathTricks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &fault{})
	outside := filepath.Join(w.dir, "outside")
	if err := os.WriteFile(outside, []byte("planted-text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := tree(t, w.dir)
	keys := filepath.Join(w.dir, "keys")
	if err := os.Mkdir(keys, 0o700); err != nil {
		t.Fatal(err)
	}
	tricks := []string{"../outside", outside, "/etc/passwd", "..", "a/../../outside", "%2e%2e%2foutside", "file:" + outside, "--config=" + outside, "x\n../y"}
	for i, trick := range tricks {
		for n, args := range [][]string{
			{"dkim", "new", "--dir", keys, "--selector", "s", trick}, {"dkim", "new", "--dir", keys, "--selector", trick, "example.org"},
			{"explain", trick}, {"provider", "show", trick}, {"provider", "export", trick}, {"provider", "diff", trick}, {"lookup", "query", trick, "x"}, {"greylist", "forget", trick},
			{"rbl", "check", trick}, {"dmarc", "report", "show", trick},
		} {
			if n > 1 && n%len(tricks) != i { // each command with one of them, but for those that write
				continue
			}
			cmd := exec.Command(w.d.path, append([]string{"-c", w.d.config}, args...)...)
			cmd.Dir = w.dir
			out, err := cmd.CombinedOutput()
			if strings.Contains(string(out), "planted-text") || strings.Contains(string(out), "root:x:0") {
				t.Errorf("%q shows the file: %s", args, out)
			}
			if err == nil && args[0] == "dkim" {
				t.Errorf("%q: %s", args, out)
			}
			if strings.Contains(string(out), "panic:") || strings.Contains(string(out), "goroutine ") {
				t.Errorf("%q: %s", args, out)
			}
		}
		for _, path := range []string{"/v1/lookup/", "/v1/decisions/", "/v1/providers/list/", "/v1/", "/"} {
			c, err := net.Dial("unix", filepath.Join(w.dir, "admin.sock"))
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(patience)) // a dead connection fails the read
			_, _ = fmt.Fprintf(c, "GET %s%s?key=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path, trick)
			b, _ := io.ReadAll(c) // an end is an answer, too
			_ = c.Close()         // the end
			if strings.Contains(string(b), "planted-text") || strings.Contains(string(b), "root:x:0") {
				t.Errorf("GET %s%s: %s", path, trick, b)
			}
		}
	}
	for name := range tree(t, w.dir) {
		if !before[name] && !strings.HasPrefix(name, filepath.Join(w.dir, "state")) && name != keys {
			t.Errorf("there is a new file: %s", name)
		}
	}
	w.d.stop()
}

// tree returns the files below a directory.
func tree(t *testing.T, dir string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error { out[path] = true; return err }); err != nil {
		t.Fatal(err)
	}
	return out
}
