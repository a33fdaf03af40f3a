package limit

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
)

// Notify is a [[limit.notify]]: who is told that somebody has hit a limit, by a
// webhook or by a mail.
type Notify struct {
	// Name is what rules name.
	Name string `toml:"name"`
	// URL is where a webhook is POSTed to, "https://..." or "http://...".
	// Default none.
	URL string `toml:"url"`
	// URLFile holds the URL, where it is a secret itself. Default none.
	URLFile string `toml:"url_file"`
	// TokenFile holds a token, which is sent as "Authorization: Bearer ...".
	// Default none.
	TokenFile string `toml:"token_file"`
	// Headers are more fields of the request, each "Name: value". Default none.
	Headers []string `toml:"headers"`
	// ContentType is that of a webhook's body; what stands for a placeholder is
	// escaped as JSON, as a form or not at all, as the type says. Default
	// "application/json".
	ContentType string `toml:"content_type"`
	// CAFile holds the certificates to trust, in PEM. Default: the system's.
	CAFile string `toml:"ca_file"`
	// To are those who get a mail: addresses, or names of this host's.
	// Default none.
	To []string `toml:"to"`
	// From is the sender of the mail; none: the null sender, so that nothing
	// comes back. Default none.
	From string `toml:"from"`
	// Subject of the mail. Placeholders as in body. Default "{hostname}: {key}
	// has reached the limit {rule}".
	Subject string `toml:"subject"`
	// Body is what is sent. Placeholders: {rule}, {key}, {used}, {limit}, {time},
	// {hostname}, {client}, {login}, {sender}. Default: all of them, as JSON or
	// as text.
	Body string `toml:"body"`
	// Timeout of one attempt; there are three. Default "10s".
	Timeout conf.Duration `toml:"timeout"`
}

// DefaultNotify returns what a [[limit.notify]] leaves out.
func DefaultNotify() Notify {
	return Notify{ContentType: typeJSON, Subject: "{hostname}: {key} has reached the limit {rule}", Timeout: conf.Duration(10 * time.Second)}
}

const (
	typeJSON = "application/json"
	typeForm = "application/x-www-form-urlencoded"

	jsonBody = `{"rule": "{rule}", "key": "{key}", "used": {used}, "limit": {limit}, "time": "{time}", ` +
		`"hostname": "{hostname}", "client": "{client}", "login": "{login}", "sender": "{sender}"}`
	textBody = "{key} has reached the limit {rule} on {hostname}.\n\nused:   {used} of {limit}\ntime:   {time}\n" +
		"client: {client}\nlogin:  {login}\nsender: {sender}\n"
)

// withDefaults fills in what is left out.
func (n Notify) withDefaults() Notify {
	def := DefaultNotify()
	if n.ContentType == "" {
		n.ContentType = def.ContentType
	}
	if n.Subject == "" {
		n.Subject = def.Subject
	}
	if n.Timeout == 0 {
		n.Timeout = def.Timeout
	}
	if n.Body == "" {
		n.Body = textBody
		if n.escape() == escapeJSON && len(n.To) == 0 {
			n.Body = jsonBody
		}
	}
	return n
}

// Bounds of notifications.
const (
	maxNotify      = 16
	maxNotifyTo    = 20
	maxNotifyBody  = 16 << 10
	notifyQueue    = 64
	notifyAttempts = 3
	// After a failure nobody is told of the same for so long.
	notifyPause = 10 * time.Minute
	// notifyGrace is how long those who wait are tried when the daemon stops.
	notifyGrace = 3 * time.Second
	maxTold     = 10_000
	maxAnswer   = 64 << 10
)

// notifyWaits are the pauses between attempts.
var notifyWaits = [notifyAttempts - 1]time.Duration{2 * time.Second, 15 * time.Second}

var notifyVars = []string{"rule", "key", "used", "limit", "time", "hostname", "client", "login", "sender"}

// placeholder is what is filled in. Other braces, as JSON has them, stay.
var placeholder = regexp.MustCompile(`\{[a-z_]+\}`)

// escaping is how a stranger's text is made harmless.
type escaping uint8

const (
	escapeText escaping = iota // control characters become "?"
	escapeJSON
	escapeForm
)

func (n *Notify) escape() escaping {
	kind, _, err := mime.ParseMediaType(n.ContentType)
	switch {
	case err != nil:
	case kind == typeJSON || strings.HasSuffix(kind, "+json"):
		return escapeJSON
	case kind == typeForm:
		return escapeForm
	}
	return escapeText
}

func (e escaping) apply(s string) string {
	switch e {
	case escapeJSON:
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(s) // a string always can be
		return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSuffix(b.String(), "\n"), `"`), `"`)
	case escapeForm:
		return url.QueryEscape(s)
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// event is one that has hit a limit.
type event struct {
	rule, who     string
	used, limit   int64
	time          time.Time
	client        netip.Addr
	login, sender string
	period        time.Duration
}

// fill fills in the placeholders of a text.
func (ev *event) fill(text, hostname string, e escaping) string {
	return placeholder.ReplaceAllStringFunc(text, func(name string) string {
		v := name
		switch name[1 : len(name)-1] {
		case "rule":
			v = ev.rule
		case "key":
			v = ev.who
		case "used":
			v = strconv.FormatInt(ev.used, 10)
		case "limit":
			v = strconv.FormatInt(ev.limit, 10)
		case "time":
			v = ev.time.Format(time.RFC3339)
		case "hostname":
			v = hostname
		case "client":
			if v = ""; ev.client.IsValid() {
				v = ev.client.String()
			}
		case "login":
			v = ev.login
		case "sender":
			v = ev.sender
		}
		return e.apply(v)
	})
}

// sample is the event of `postern limit notify --test`, and of validation.
func sample(rule string, now time.Time) *event {
	return &event{
		rule: rule, who: "test@example.org", used: 1, limit: 1, time: now, client: netip.MustParseAddr("192.0.2.1"),
		login: "test@example.org", sender: "test@example.org",
	}
}

// validate reports what is wrong with the values.
func (n *Notify) validate(prefix string, fs *conf.Faults) {
	full := n.withDefaults()
	if !isName(n.Name) {
		fs.Keyf(prefix+".name", "%q is no name: lower-case letters, digits and \"-\", at most 40", n.Name)
	}
	ways := 0
	for _, has := range []bool{n.URL != "", n.URLFile != "", len(n.To) > 0} {
		if has {
			ways++
		}
	}
	if ways != 1 {
		fs.Keyf(prefix, "wants one of url, url_file and to")
	}
	if d := full.Timeout.D(); d < time.Second || d > time.Minute {
		fs.Keyf(prefix+".timeout", "%v is out of range: 1s to 1m", full.Timeout)
	}
	if len(n.Body) > maxNotifyBody {
		fs.Keyf(prefix+".body", "has %d bytes, at most %d", len(n.Body), maxNotifyBody)
	}
	for _, text := range []struct{ key, value string }{{"body", full.Body}, {"subject", full.Subject}} {
		for _, name := range placeholder.FindAllString(text.value, -1) {
			if !slices.Contains(notifyVars, name[1:len(name)-1]) {
				fs.Keyf(prefix+"."+text.key, "unknown placeholder %s (known here: %s)", name, strings.Join(notifyVars, ", "))
			}
		}
	}
	if len(n.To) > 0 {
		n.validateMail(prefix, fs)
	} else {
		n.validateHook(prefix, &full, fs)
	}
}

func (n *Notify) validateHook(prefix string, full *Notify, fs *conf.Faults) {
	if n.URL != "" {
		if err := checkURL(n.URL, n.TokenFile != ""); err != nil {
			fs.Keyf(prefix+".url", "%v", err)
		}
	}
	if _, _, err := mime.ParseMediaType(full.ContentType); err != nil || !isFieldText(full.ContentType) {
		fs.Keyf(prefix+".content_type", "%q is no media type", full.ContentType)
	}
	if body := sample("rule", time.Time{}).fill(full.Body, "mx.example.org", full.escape()); full.escape() == escapeJSON && !json.Valid([]byte(body)) {
		fs.Keyf(prefix+".body", "is not JSON once its placeholders are filled in: %s", body)
	}
	for i, h := range n.Headers {
		name, _, err := parseHeader(h)
		if err == nil && name == "Authorization" && n.TokenFile != "" {
			err = errors.New("the token is sent as Authorization")
		}
		if err != nil {
			fs.Keyf(index(prefix+".headers", i), "%v", err)
		}
	}
	for key, value := range map[string]string{"from": n.From, "subject": n.Subject} {
		if value != "" {
			fs.Keyf(prefix+"."+key, "is for mails: there is no to")
		}
	}
	if n.CAFile != "" {
		if _, err := n.roots(); err != nil {
			fs.Keyf(prefix+".ca_file", "%v", err)
		}
	}
}

// checkURL reports what is wrong with a webhook's address. A token is sent
// without TLS to this host only.
func checkURL(text string, token bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("it is no URL") // whose text may be a secret
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Fragment != "":
		return errors.New("it is no http or https URL")
	case u.User != nil:
		return errors.New("it holds a password: use token_file or url_file")
	case token && u.Scheme == "http" && !loopback(u.Hostname()):
		return errors.New("a token is not sent to another host without TLS")
	}
	return nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// parseHeader reads "Name: value".
func parseHeader(text string) (name, value string, err error) {
	name, value, ok := strings.Cut(text, ":")
	value = strings.TrimSpace(value)
	name = http.CanonicalHeaderKey(strings.TrimSpace(name))
	switch {
	case !ok || !isToken(name) || !isFieldText(value):
		return "", "", fmt.Errorf("%q is not \"Name: value\"", text)
	case slices.Contains([]string{"Content-Type", "Content-Length", "Host", "Transfer-Encoding", "Connection"}, name):
		return "", "", fmt.Errorf("%s is not to be set", name)
	}
	return name, value, nil
}

func isToken(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	}) < 0
}

func isFieldText(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

func (n *Notify) roots() (*x509.CertPool, error) {
	pem, err := os.ReadFile(n.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", n.CAFile)
	}
	return pool, nil
}

// sender sends one notification. It returns by ctx's deadline.
type sender interface {
	send(ctx context.Context, ev *event) error
}

// lasting marks a failure that another attempt would meet again.
type lasting struct{ error }

func (l lasting) Unwrap() error { return l.error }

// target is one [[limit.notify]] at work.
type target struct {
	Notify
	sender
	leases  AdminStore
	log     *zap.Logger
	results map[string]prometheus.Counter
	queue   chan event
	full    atomic.Bool

	mu   sync.Mutex
	told map[string]time.Time // who is known to have been told of, and until when
}

// Results of notifications.
const (
	resultSent    = "sent"
	resultFailed  = "failed"
	resultDropped = "dropped"
)

func newTarget(n Notify, o *Options, sendmail string, counts *prometheus.CounterVec, log *zap.Logger) (*target, error) {
	n = n.withDefaults()
	t := &target{
		Notify: n, leases: o.Leases, log: log.With(zap.String("notify", n.Name)), queue: make(chan event, notifyQueue),
		told: make(map[string]time.Time), results: make(map[string]prometheus.Counter),
	}
	for _, r := range []string{resultSent, resultFailed, resultDropped} {
		t.results[r] = counts.WithLabelValues(n.Name, r)
	}
	if len(n.To) > 0 {
		t.sender = &mail{Notify: n, hostname: o.Hostname, program: sendmail}
		return t, nil
	}
	hook, err := newWebhook(n, o)
	t.sender = hook
	return t, err
}

// note takes an event, unless it is known that its target has been told. It
// never waits.
func (t *target) note(ev *event) {
	key := ev.rule + "/" + ev.who
	t.mu.Lock()
	until, known := t.told[key]
	// One that ends later than any can was set before the clock was set back.
	known = known && ev.time.Before(until) && until.Sub(ev.time) <= max(ev.period, notifyPause)
	if !known {
		if len(t.told) >= maxTold {
			clear(t.told)
		}
		t.told[key] = ev.time.Add(ev.period)
	}
	t.mu.Unlock()
	if known {
		return
	}
	select {
	case t.queue <- *ev:
		t.full.Store(false)
	default:
		t.results[resultDropped].Inc()
		t.forget(key, ev.time)
		if !t.full.Swap(true) {
			t.log.Warn("too many notifications wait; more are dropped")
		}
	}
}

// forget has a later event tried again, after a pause.
func (t *target) forget(key string, now time.Time) { t.remember(key, now.Add(notifyPause)) }

// remember has events of a key passed over until then.
func (t *target) remember(key string, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told[key] = until
}

// run sends what is noted until ctx ends, and then what waits, within the
// grace.
func (t *target) run(ctx context.Context) {
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(notifyGrace, cancel) })()
	for {
		select {
		case ev := <-t.queue:
			t.deliver(ctx, hard, &ev)
			continue
		case <-ctx.Done():
		}
		break
	}
	for {
		select {
		case ev := <-t.queue:
			t.deliver(ctx, hard, &ev)
		default:
			return
		}
	}
}

// deliver sends one notification if nobody has before, in some attempts; in
// one when ctx has ended.
func (t *target) deliver(ctx, hard context.Context, ev *event) {
	fail := func(what string, err error) {
		t.results[resultFailed].Inc()
		t.forget(ev.rule+"/"+ev.who, ev.time)
		t.log.Error(what, zap.String("rule", ev.rule), zap.String("key", ev.who), zap.Error(err))
	}
	lease, mine, err := t.claim(hard, ev)
	if err != nil {
		fail("a notification was not sent: the store does not say whether others have", err)
		return
	}
	if !mine {
		if at, ok := leaseTime(lease); ok {
			t.remember(ev.rule+"/"+ev.who, at.Add(ev.period))
		}
		return
	}
	for i := 0; ; i++ {
		one, cancel := context.WithTimeout(hard, t.Timeout.D())
		err = t.send(one, ev)
		cancel()
		if err == nil {
			t.results[resultSent].Inc()
			t.log.Info("notification sent", zap.String("rule", ev.rule), zap.String("key", ev.who))
			return
		}
		var l lasting
		if i == notifyAttempts-1 || errors.As(err, &l) || ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(notifyWaits[i]):
		case <-ctx.Done():
		}
	}
	t.release(hard, ev, lease)
	fail("a notification could not be sent", err)
}

func (t *target) leaseKey(ev *event) string { return t.Name + "/" + ev.rule + "/" + ev.who }

// leaseTimeout bounds what is asked of the store for a notification.
const leaseTimeout = 5 * time.Second

// leaseTime returns when a lease was taken.
func leaseTime(lease string) (time.Time, bool) {
	at, err := strconv.ParseInt(lease, 10, 64)
	return time.UnixMilli(at), err == nil
}

// claim takes the right to tell of ev for its period, from all gateways. The
// lease is the time at which it was taken, by others if it is not mine.
func (t *target) claim(ctx context.Context, ev *event) (lease string, mine bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	key := t.leaseKey(ev)
	old, err := t.leases.Load(ctx, key)
	if err != nil {
		return "", false, err
	}
	if at, ok := leaseTime(old); ok {
		// One of the future is of a clock that was set back.
		if since := ev.time.Sub(at); since < ev.period && since > -ev.period {
			return old, false, nil
		}
	}
	lease = strconv.FormatInt(ev.time.UnixMilli(), 10)
	mine, err = t.leases.Swap(ctx, key, old, lease, ev.time.Add(ev.period))
	return lease, mine, err
}

// release gives the right back, for a later attempt.
func (t *target) release(ctx context.Context, ev *event, lease string) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	if _, err := t.leases.Swap(ctx, t.leaseKey(ev), lease, "", time.Time{}); err != nil {
		t.log.Warn("nobody is told of this until its period ends", zap.String("rule", ev.rule), zap.String("key", ev.who), zap.Error(err))
	}
}

// webhook POSTs.
type webhook struct {
	Notify
	hostname string
	address  string
	header   http.Header
	client   *http.Client
}

func newWebhook(n Notify, o *Options) (*webhook, error) {
	h := &webhook{Notify: n, hostname: o.Hostname, address: n.URL, header: http.Header{"Content-Type": {n.ContentType}, "User-Agent": {"postern"}}}
	secret := func(path string) (string, error) {
		s, err := o.Secret(path)
		if err == nil && (s == "" || !isFieldText(s)) {
			err = fmt.Errorf("%s holds nothing that can be used", path)
		}
		return s, err
	}
	if n.URLFile != "" {
		text, err := secret(n.URLFile)
		if err == nil {
			err = checkURL(text, n.TokenFile != "")
		}
		if err != nil {
			return nil, fmt.Errorf("limit: notify %s: url_file: %w", n.Name, err)
		}
		h.address = text
	}
	for _, text := range n.Headers {
		name, value, err := parseHeader(text)
		if err != nil {
			return nil, fmt.Errorf("limit: notify %s: %w", n.Name, err)
		}
		h.header.Add(name, value)
	}
	if n.TokenFile != "" {
		token, err := secret(n.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("limit: notify %s: token_file: %w", n.Name, err)
		}
		h.header.Set("Authorization", "Bearer "+token)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if n.CAFile != "" {
		var err error
		if conf.RootCAs, err = n.roots(); err != nil {
			return nil, fmt.Errorf("limit: notify %s: %w", n.Name, err)
		}
	}
	h.client = &http.Client{
		// They are rare: no connection is kept.
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, DisableKeepAlives: true, MaxResponseHeaderBytes: maxAnswer,
			DialContext: (&net.Dialer{}).DialContext, ForceAttemptHTTP2: true,
		},
		// A POST that is sent elsewhere becomes a GET, and takes the token along.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return h, nil
}

func (h *webhook) send(ctx context.Context, ev *event) error {
	body := ev.fill(h.Body, h.hostname, h.escape())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.address, strings.NewReader(body))
	if err != nil {
		return lasting{errors.New("webhook: the URL cannot be used")}
	}
	req.Header = h.header.Clone()
	resp, err := h.client.Do(req)
	if err != nil {
		// The URL, which the error names, may be a secret.
		if ue := (*url.Error)(nil); errors.As(err, &ue) {
			err = ue.Err
		}
		return fmt.Errorf("webhook: %w", err)
	}
	defer resp.Body.Close()                                     //nolint:errcheck // only read
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // only a remark
	if resp.StatusCode/100 == 2 {
		return nil
	}
	err = fmt.Errorf("webhook: answered %d: %s", resp.StatusCode, escapeText.apply(string(text[:min(len(text), 200)])))
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return err
	}
	if resp.StatusCode < 500 {
		return lasting{err}
	}
	return err
}

// Secrets returns the files that hold secrets, by the keys that name them.
func (c *Config) Secrets(prefix string) map[string]string {
	out := map[string]string{}
	for i := range c.Notify {
		key := index(prefix+".notify", i)
		out[key+".url_file"], out[key+".token_file"] = c.Notify[i].URLFile, c.Notify[i].TokenFile
	}
	return out
}

// Warnings reports what an administrator should know.
func (c *Config) Warnings(prefix string) (fs conf.Faults) {
	if !slices.ContainsFunc(c.Notify, func(n Notify) bool { return len(n.To) > 0 }) {
		return nil
	}
	if st, err := os.Stat(c.Sendmail); err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0 {
		fs.Keyf(prefix+".sendmail", "%s is no program: no mail can be sent by it", c.Sendmail)
	}
	return fs
}

func (c *Config) validateNotify(prefix string, fs *conf.Faults) {
	if !filepath.IsAbs(c.Sendmail) {
		fs.Keyf(prefix+".sendmail", "%q is not an absolute path", c.Sendmail)
	}
	if len(c.Notify) > maxNotify {
		fs.Keyf(prefix+".notify", "%d: at most %d", len(c.Notify), maxNotify)
	}
	names := map[string]int{}
	for i := range c.Notify {
		key := index(prefix+".notify", i)
		c.Notify[i].validate(key, fs)
		if before, twice := names[c.Notify[i].Name]; twice {
			fs.Keyf(key+".name", "%q is the name of notify %d, too", c.Notify[i].Name, before+1)
		}
		names[c.Notify[i].Name] = i
	}
	for i := range c.Rules {
		r := &c.Rules[i]
		key := index(prefix+".rule", i)
		for j, name := range r.Notify {
			if _, ok := names[name]; !ok {
				fs.Keyf(index(key+".notify", j), "there is no [[limit.notify]] of the name %q", name)
			}
		}
		if d := r.NotifyPeriod.D(); d != 0 && (d < time.Minute || d > maxPer) {
			fs.Keyf(key+".notify_period", "%v is out of range: 1m to 366d", r.NotifyPeriod)
		}
	}
}

// Tested is what became of a notification that was sent as a test.
type Tested struct {
	Notify string `json:"notify"`
	Error  string `json:"error,omitempty"`
}

// TestNotify sends a test to all targets of a rule, at once and once.
func (c *Check) TestNotify(ctx context.Context, rule string, now time.Time) ([]Tested, error) {
	i := c.rule(rule)
	if i < 0 {
		return nil, fmt.Errorf("there is no rule %q", rule)
	}
	targets := c.rules[i].targets
	if len(targets) == 0 {
		return nil, fmt.Errorf("the rule %q names no notify", rule)
	}
	out := make([]Tested, len(targets))
	var wg sync.WaitGroup
	for j, t := range targets {
		wg.Go(func() {
			one, cancel := context.WithTimeout(ctx, t.Timeout.D())
			defer cancel()
			out[j].Notify = t.Name
			if err := t.send(one, sample(rule, now)); err != nil {
				out[j].Error = err.Error()
			}
		})
	}
	wg.Wait()
	return out, nil
}
