package headercheck

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern/internal/mailaddr"
	"postern/internal/postfixtest"
	"postern/policy"
)

// mta is a real Postfix whose cleanup(8) reads its tables anew for each
// message. What it takes stays in its queue.
type mta struct {
	t      *testing.T
	dir    string
	config string
	conn   *textproto.Conn
}

func startMTA(t *testing.T) *mta {
	t.Helper()
	missing := func(what string) {
		if os.Getenv("CI") == "true" {
			t.Fatal(what)
		}
		t.Skip(what)
	}
	needPostmap(t)
	if os.Geteuid() != 0 {
		missing("Postfix can only be started by root")
	}
	dir, err := os.MkdirTemp("/tmp", "postern-hc-") // the paths of its sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // best effort
	m := &mta{t: t, dir: dir, config: filepath.Join(dir, "etc")}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"etc", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("chown", "postfix", filepath.Join(dir, "data")).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close() // Postfix takes it
	main := fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
maillog_file = %[1]s/mail.log
maillog_file_prefixes = %[1]s
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.example.com
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.255.255.255/32
smtpd_peername_lookup = no
disable_dns_lookups = yes
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 100000
smtpd_hard_error_limit = 100000
smtpd_client_event_limit_exceptions = static:all
virtual_mailbox_domains = example.com
virtual_mailbox_maps = static:box
defer_transports = virtual error
default_transport = error:later
local_header_rewrite_clients =
always_add_missing_headers = no
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = reject_unauth_destination
bounce_size_limit = 1
header_checks = pcre:%[1]s/header
mime_header_checks = pcre:%[1]s/mime
nested_header_checks = pcre:%[1]s/nested
body_checks = pcre:%[1]s/body
enable_long_queue_ids = yes
max_use = 1000
`, dir)
	master := addr + ` inet n - n - - smtpd
cleanup unix n - n - 0 cleanup -o max_use=1
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
`
	files := map[string]string{"main.cf": main, "master.cf": master}
	if data, err := os.ReadFile("/etc/postfix/dynamicmaps.cf"); err == nil {
		files["dynamicmaps.cf"] = string(data)
	}
	for name, text := range files {
		if err := postfixtest.WriteFile(filepath.Join(m.config, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(m.config, "dynamicmaps.cf.d"), os.DirFS("/etc/postfix/dynamicmaps.cf.d")); err != nil && !os.IsNotExist(err) {
		t.Log(err)
	}
	m.tables(map[Kind]string{})
	t.Cleanup(m.stop)
	if out, err := exec.Command("postfix", "-c", m.config, "start").CombinedOutput(); err != nil {
		t.Fatalf("postfix start: %v\n%s", err, out)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(10 * time.Minute)) // a dead connection fails the next command
			m.conn = textproto.NewConn(c)
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("Postfix does not answer: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, _, err := m.conn.ReadResponse(220); err != nil {
		t.Fatal(err)
	}
	m.say(250, "EHLO client.example.org")
	return m
}

func (m *mta) stop() {
	if m.t.Failed() {
		b, _ := os.ReadFile(filepath.Join(m.dir, "mail.log")) // it may not have started
		if len(b) > 20000 {
			b = b[len(b)-20000:]
		}
		m.t.Logf("Postfix's log:\n%s", b)
	}
	if m.conn != nil {
		_ = m.conn.Close() // done with it
	}
	postfixtest.Stop(m.t, filepath.Join(m.dir, "queue"))
}

func (m *mta) say(code int, format string, args ...any) string {
	m.t.Helper()
	if err := m.conn.PrintfLine(format, args...); err != nil {
		m.t.Fatal(err)
	}
	_, text, err := m.conn.ReadResponse(code)
	if err != nil {
		m.t.Fatalf("%s: %v", format, err)
	}
	return text
}

// tables writes the tables, which the next cleanup process reads.
func (m *mta) tables(text map[Kind]string) {
	m.t.Helper()
	for k := Header; k <= Body; k++ {
		rules := text[k]
		if k == Header {
			rules = "/^Received: from client\\.example\\.org .*\\n\\tby mx\\.example\\.com / DUNNO\n" + rules
		}
		if err := os.WriteFile(filepath.Join(m.dir, k.String()), []byte(rules), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
}

// outcome is what became of a message.
type outcome struct {
	Reply      string // of a refused one
	Held, Gone bool
	Message    string
	Recipients []string
	Redirect   string
	Filter     string
}

// send gives Postfix a message with CRLF line ends.
func (m *mta) send(message []byte) outcome {
	m.t.Helper()
	m.say(250, "MAIL FROM:<alice@example.org>")
	m.say(250, "RCPT TO:<bob@example.com>")
	m.say(354, "DATA")
	w := m.conn.DotWriter()
	if _, err := w.Write(message); err != nil {
		m.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		m.t.Fatal(err)
	}
	code, text, err := m.conn.ReadResponse(0)
	if code == 0 {
		m.t.Fatal(err)
	}
	if code != 250 {
		return outcome{Reply: fmt.Sprintf("%d %s", code, text)}
	}
	_, id, ok := strings.Cut(text, "queued as ")
	if !ok {
		m.t.Fatalf("reply %d %s", code, text)
	}
	return m.queued(id)
}

// queued finds out what is in the queue.
func (m *mta) queued(id string) outcome {
	m.t.Helper()
	for try := 0; ; try++ {
		if _, err := os.Stat(filepath.Join(m.dir, "queue/hold", id)); err == nil {
			o := m.read(id)
			o.Held = true
			return o
		}
		if _, err := os.Stat(filepath.Join(m.dir, "queue/deferred", id[:1], id)); err == nil {
			return m.read(id)
		}
		found, err := filepath.Glob(filepath.Join(m.dir, "queue/*/"+id))
		if err != nil {
			m.t.Fatal(err)
		}
		deferred, err := filepath.Glob(filepath.Join(m.dir, "queue/deferred/*/"+id))
		if err != nil {
			m.t.Fatal(err)
		}
		switch {
		case len(deferred) > 0:
			return m.read(id)
		case len(found) == 0 && try > 3: // not between two directories
			return outcome{Gone: true}
		case try > 3000:
			m.t.Fatalf("message %s stays in %v", id, found)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (m *mta) read(id string) outcome {
	m.t.Helper()
	cat := func(flag string) string {
		out, err := exec.Command("postcat", "-c", m.config, flag, "-q", id).Output()
		if err != nil {
			m.t.Fatalf("postcat: %v", err)
		}
		return string(out)
	}
	var o outcome
	text := cat("-bh")
	// Postfix's own Received, three lines, is hidden from milters.
	for range 3 {
		_, text, _ = strings.Cut(text, "\n")
	}
	o.Message = text
	for line := range strings.Lines(cat("-e")) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "recipient":
			o.Recipients = append(o.Recipients, value)
		case "redirect_to", "redirect_recipient":
			o.Redirect = value
		case "content_filter":
			o.Filter = value
		}
	}
	return o
}

// ours is what the check makes of the same message.
func ours(t *testing.T, c *Check, message []byte) outcome {
	t.Helper()
	to := []policy.Address{mailaddr.Parse("bob@example.com")}
	rep, err := c.Test(nil, to, message)
	if err != nil {
		t.Fatal(err)
	}
	var o outcome
	switch v := rep.Judgement.Verdict; v.Action {
	case policy.Reject, policy.Defer:
		return outcome{Reply: v.Reply.String()}
	case policy.Discard:
		return outcome{Gone: true}
	case policy.Hold:
		o.Held = true
	default:
	}
	o.Recipients = []string{"bob@example.com"}
	fields, body := cutFields(message)
	edits := slices.DeleteFunc(rep.Judgement.Edits, func(e policy.Edit) bool {
		switch {
		case e.Kind == policy.AddRecipient:
			o.Recipients = append(o.Recipients, e.Arg)
		case e.Kind == policy.ReplaceRecipient:
			o.Redirect = e.Arg
		case e.Kind == policy.InsertField && e.Name == "X-Way":
			o.Filter = strings.TrimSpace(e.Value)
			return true
		}
		return false
	})
	o.Message = strings.ReplaceAll(string(Apply(fields, body, edits)), "\r\n", "\n")
	return o
}

// wordsOf are what messages and patterns are made of.
var wordsOf = []string{"alpha", "beta", "gamma", "delta", "needle", "Caf\xe9", "x.exe", "=?utf-8?q?a?=", "<a@example.org>", "100%", "$5"}

func randomLine(r *rand.Rand) string {
	var b []string
	for range 1 + r.IntN(3) {
		b = append(b, pick(r, wordsOf...))
	}
	return strings.Join(b, " ")
}

func randomHeader(r *rand.Rand) string {
	s := pick(r, "Subject: ", "X-One: ", "X-Two:", "To: ", "X-Three:\t", "Subject : ", "Reply-To: ") + randomLine(r)
	for range r.IntN(3) {
		s += pick(r, "\n\t", "\n ", "\n  ") + randomLine(r)
	}
	return s + "\n"
}

func randomMail(r *rand.Rand) []byte {
	var b strings.Builder
	for range 1 + r.IntN(4) {
		b.WriteString(randomHeader(r))
	}
	inner := func() string { return strings.ReplaceAll(randomHeader(r), " : ", ": ") }
	lines := func() {
		for range r.IntN(4) {
			b.WriteString(pick(r, randomLine(r), randomLine(r), "", ".", "..", "-- ", strings.Repeat("long ", 420)+randomLine(r)) + "\n")
		}
	}
	switch r.IntN(4) {
	case 0:
		b.WriteString("\n")
	case 1:
		b.WriteString("MIME-Version: 1.0\nContent-Type: message/rfc822\n\n" + inner() + "Content-Type: text/plain; name=x.exe\n" + inner() + "\n")
	default:
		b.WriteString("Content-Type: multipart/mixed; boundary=bb\n\n")
		lines()
		for range 1 + r.IntN(3) {
			b.WriteString("--bb\n" + pick(r, "Content-Type: text/plain\n", "Content-Disposition: attachment;\n filename=x.exe\n", "", inner(), "Content-Type: message/rfc822\n\n"+inner()+inner()) + "\n")
			lines()
		}
		b.WriteString("--bb--\n")
	}
	lines()
	b.WriteString("end\n")
	return toCRLF([]byte(b.String()))
}

func randomRules(r *rand.Rand, k Kind) string {
	var b strings.Builder
	for i := range r.IntN(6) {
		word := pick(r, "alpha", "beta", "gamma", "delta", "needle", "caf\xe9", "x\\.exe", "utf-8", "example", "end", "long", "\\$5")
		pattern := pick(r, "^(.*"+word+".*)$", "^[^:]*:(.*)"+word, word, "^(Subject|X-One): .*"+word, "^X-T[^:]*:(.*)$", "\n.(.*)", "^(to|subject):", "^Content-[a-z]*: *(.*)$", "^(-*b*) *$", "^()"+word)
		if !strings.Contains(pattern, "(") {
			pattern = "(" + pattern + ")"
		}
		text := pick(r, "X-New: new", "X-New: $1", "Subject: other", "X-N"+strconv.Itoa(i)+":new", "x", "$1", "X-New : y")
		if k == Body {
			text = pick(r, "new line", "<$1>", "$1 $1", "$$1")
		}
		action := pick(r, "REPLACE "+text, "PREPEND "+text, "REPLACE "+text, "PREPEND "+text, "IGNORE", "STRIP", "IGNORE", "DUNNO", "WARN x", "INFO", "HOLD", "BCC carol@example.com",
			"BCC nobody", "REDIRECT dave@example.com", "FILTER smtp:[192.0.2.9]:10025", "FILTER nowhere", "PASS", "DISCARD", "REJECT", "REJECT no $1", "REJECT 4.7.1 later", "REJECT 5.6.0 bad",
			"REJECT 2.0.0 odd", "NONSENSE $1", "replace "+text, "PREPEND", "REPLACE")
		if action != "NONSENSE $1" && r.IntN(3) > 0 && strings.HasPrefix(action, "REJECT") {
			action = "WARN less often"
		}
		b.WriteString(pick(r, "/", "/", "/", "!/")[:1])
		fmt.Fprintf(&b, "%s/ %s\n", pattern, action)
	}
	text := b.String()
	// A negated rule finds nothing that could be put into its result.
	var out strings.Builder
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "!"); ok {
			line = "!/" + strings.ReplaceAll(strings.ReplaceAll(rest, "$1", "one"), "$$", "one")
		}
		out.WriteString(line)
	}
	return out.String()
}

// Messages leave as they would from Postfix with the same tables: the reply,
// the content and the envelope.
func TestMessagesAsPostfix(t *testing.T) {
	t.Parallel()
	m := startMTA(t)
	seed := uint64(42)
	if s := os.Getenv("POSTERN_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatalf("POSTERN_SEED=%q is not a number", s)
		}
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	changed, refused, held, gone, more := 0, 0, 0, 0, 0
	for n := range 220 {
		text := map[Kind]string{}
		for k := Header; k <= Body; k++ {
			text[k] = randomRules(rng, k)
		}
		message := randomMail(rng)
		m.tables(text)
		want := m.send(message)

		c := DefaultConfig()
		c.Lenient, c.FilterMarker = true, "X-Way"
		for k := Header; k <= Body; k++ {
			c.Checks = append(c.Checks, TableConfig{Table: "pcre:" + filepath.Join(m.dir, k.String()), Kind: k})
		}
		got := ours(t, newSite(t, c).Check, message)
		// A milter cannot put white space before a colon.
		want.Message = strings.ReplaceAll(want.Message, "X-New : y", "X-New: y")
		got.Message = strings.ReplaceAll(got.Message, "X-New : y", "X-New: y")
		want.Reply = strings.TrimRight(want.Reply, " ")
		if want.Redirect != "" {
			want.Filter = "" // the queue manager passes it over
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("case %d: -Postfix +ours:\n%s\nmessage:\n%s\ntables: %q", n, diff, message, text)
		}
		plainText := strings.ReplaceAll(string(message), "\r\n", "\n")
		switch {
		case want.Reply != "":
			refused++
		case want.Gone:
			gone++
		default:
			if want.Held {
				held++
			}
			if want.Message != plainText {
				changed++
			}
			if want.Redirect != "" || want.Filter != "" || len(want.Recipients) > 1 {
				more++
			}
		}
	}
	t.Logf("%d changed, %d refused, %d held, %d thrown away, %d with another envelope", changed, refused, held, gone, more)
	if changed < 50 || refused < 10 || held < 5 || gone < 5 || more < 10 {
		t.Error("too few of one kind")
	}
}

// Single messages that chance would not make.
func TestOddMessagesAsPostfix(t *testing.T) {
	t.Parallel()
	m := startMTA(t)
	deep := "Content-Type: multipart/mixed; boundary=b0\n\n"
	for i := 1; i < 150; i++ {
		deep += fmt.Sprintf("--b%d\nContent-Type: multipart/mixed; boundary=b%d\n\n", i-1, i)
	}
	text := map[Kind]string{
		Header: "/^Subject: needle/ HOLD\n/^Long:.*needle/ REJECT long\n", MIME: "/^X-Gone/ IGNORE\n", Nested: "/^Subject: *(.*)/ REPLACE Subject: [$1]\n",
		Body: "/^needle/ REPLACE found\n/^(-+)$/ PREPEND above\n",
	}
	m.tables(text)
	c := DefaultConfig()
	c.HeaderLimit = 102400 // as it is without a milter
	for k := Header; k <= Body; k++ {
		c.Checks = append(c.Checks, TableConfig{Table: "pcre:" + filepath.Join(m.dir, k.String()), Kind: k})
	}
	check := newSite(t, c).Check
	for name, message := range map[string]string{
		"nesting":           deep + "x\n",
		"100 levels":        strings.Split(deep, "--b99\n")[0] + "needle\n",
		"long header":       "Long: " + strings.Repeat("word ", 20000) + "\n needle\n\nbody\n",
		"too long header":   "Long: " + strings.Repeat("word ", 21000) + "\n needle\n\nbody\n",
		"beyond body limit": "A: b\n\n" + strings.Repeat(strings.Repeat("x", 79)+"\n", 640) + "needle\n",
		"within body limit": "A: b\n\n" + strings.Repeat(strings.Repeat("x", 79)+"\n", 639) + "needle\n",
		"at the body limit": "A: b\n\n" + strings.Repeat(strings.Repeat("x", 79)+"\n", 639) + strings.Repeat("x", 77) + "\nneedle\n",
		"long lines":        "A: b\n\n" + strings.Repeat("x", 2040) + "needle\n" + strings.Repeat("x", 2048) + "\n" + strings.Repeat("-", 5000) + "\nneedle\n",
		"headers only":      "Subject: needle\nA: b\n",
		"empty":             "",
		"no header":         "body only\nneedle\n",
		"parts end early":   "Content-Type: multipart/mixed; boundary=b\n\n--b\nX-Gone: x\n folded\nno header\nSubject: y\n--b\nX-Gone: z\n",
		"cut boundary":      "Content-Type: multipart/mixed; boundary=" + strings.Repeat("b", 2100) + "\n\n--" + strings.Repeat("b", 2048) + "\nX-Gone: y\n\nneedle\n",
		"part without end":  "Content-Type: message/rfc822\n\nSubject: inner\n folded",
		"8 bit":             "Subject: needle \xff\xfe\n\n\xe9needle\nneedle \xe9\n",
	} {
		eml := toCRLF([]byte(message))
		want, got := m.send(eml), ours(t, check, eml)
		if name == "too long header" {
			got.Message = want.Message // Postfix has cut it before a milter sees it
		}
		// The empty line after the headers is there for us always.
		want.Message, got.Message = strings.TrimRight(want.Message, "\n"), strings.TrimRight(got.Message, "\n")
		if name == "no header" {
			want.Message = strings.TrimLeft(want.Message, "\n")
			got.Message = strings.TrimLeft(got.Message, "\n")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -Postfix +ours:\n%s", name, clip(diff, 3000))
		}
	}
}
