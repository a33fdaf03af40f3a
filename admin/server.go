// Package admin is the door for the administrator: HTTP on a unix socket (or
// a tcp address with a token) with metrics, health, and the calls behind the
// command line. Both ends of it are here: [Server] and [Client].
//
// Paths: /metrics (Prometheus), /healthz (the process answers), /readyz (it
// can decide), and /v1/... (JSON, for `postern`; not a stable interface).
package admin

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"postern/access"
	"postern/greylist"
	"postern/headercheck"
	"postern/internal/conf"
	"postern/internal/listen"
	"postern/journal"
	"postern/lookup"
	"postern/policy"
	"postern/rbl"
)

// Config is the [admin] section.
type Config struct {
	// Listen is where the administrator's door is: "unix:/path" with options
	// such as mode= and group=, or "tcp:HOST:PORT", which needs token_file.
	// Empty: no such door. Default "unix:/run/postern/admin.sock".
	Listen string `toml:"listen"`
	// TokenFile holds the secret that a client of a tcp address must send as
	// "Authorization: Bearer SECRET". Default: none.
	TokenFile string `toml:"token_file"`
	// Journal is how many refused decisions are kept in memory for
	// `postern explain REFERENCE`, about 1 kB each. Default 10000.
	Journal int `toml:"journal"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Listen: "unix:/run/postern/admin.sock", Journal: 10000}
}

// Validate reports what is wrong; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if c.Listen != "" {
		var a listen.Address
		if err := a.UnmarshalText([]byte(c.Listen)); err != nil {
			fs.Keyf(prefix+".listen", "%v", err)
		} else if a.Network == "tcp" && c.TokenFile == "" {
			fs.Keyf(prefix+".listen", "a tcp address needs %s.token_file, or everybody on this host could give orders", prefix)
		}
	}
	if c.Journal < 0 || c.Journal > 1_000_000 {
		fs.Keyf(prefix+".journal", "%d is out of range: 0 to 1000000", c.Journal)
	}
}

// Backend is the daemon behind the door.
type Backend interface {
	// Ready returns nil when requests can be decided.
	Ready(ctx context.Context) error
	Status(ctx context.Context) Status
	// Reload reads the configuration again; the error says why the old one stays.
	Reload(ctx context.Context) error
	// Explain runs a request without changing anything.
	Explain(ctx context.Context, q Question) (*policy.Decision, error)
	Decision(reference string) (journal.Record, bool)
	Decisions(n int) []journal.Record
	Greylist() greylist.AdminStore
	// AccessEntries calls yield for each entry of the access lists until it
	// returns false.
	AccessEntries(yield func(access.Entry) bool)
	// TestLists asks every DNS list about an address.
	TestLists(ctx context.Context, addr netip.Addr) (rbl.TestReport, error)
	// ResetList ends the shadow into which the volume guard has put a DNS
	// list: whether there is such a list, and whether it was held.
	ResetList(name string) (known, held bool)
	Verify() Verifier
	Providers() Providers
	// HeaderRules returns the rules on message content with their hits, and
	// the lines that milter_header_checks must hold for their FILTER actions.
	HeaderRules() (rules []headercheck.RuleHits, filterLines []string)
	// Lookup asks a table of the lookup door; the error is lookup.ErrUnknown
	// when there is none of the name.
	Lookup(ctx context.Context, table, key string) (lookup.Answer, error)
	// Calls are what checks offer the administrator, by "METHOD /path". They
	// do not change while the daemon runs.
	Calls() map[string]Call
}

// Call answers a request with a value that is written as JSON. An error is the
// request's fault.
type Call func(r *http.Request) (any, error)

// Question is a request as the administrator writes it for `postern explain`.
type Question struct {
	Client     string `json:"client"`
	ClientName string `json:"client_name,omitempty"`
	Reverse    string `json:"reverse_name,omitempty"`
	Helo       string `json:"helo,omitempty"`
	Sender     string `json:"sender,omitempty"`
	Recipient  string `json:"recipient,omitempty"`
	Stage      string `json:"stage,omitempty"` // default "rcpt"
	Context    string `json:"policy_context,omitempty"`
	Login      string `json:"login,omitempty"`
}

// Server serves a Backend.
type Server struct {
	http *http.Server
	log  *zap.Logger
}

// shutdownIn bounds how long Stop waits for calls under way.
const shutdownIn = 2 * time.Second

// NewServer returns a server for one daemon. token is "" for a unix socket,
// whose file mode says who may use it.
func NewServer(b Backend, token string, gather prometheus.Gatherer, log *zap.Logger) *Server {
	h := &handler{b: b, log: log}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gather, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", h.ready)
	mux.HandleFunc("GET /v1/status", h.status)
	mux.HandleFunc("POST /v1/reload", h.reload)
	mux.HandleFunc("POST /v1/explain", h.explain)
	mux.HandleFunc("GET /v1/decisions", h.decisions)
	mux.HandleFunc("GET /v1/decisions/{ref}", h.decision)
	mux.HandleFunc("GET /v1/greylist", h.greylistList)
	mux.HandleFunc("DELETE /v1/greylist", h.greylistForget)
	mux.HandleFunc("GET /v1/greylist/stats", h.greylistStats)
	mux.HandleFunc("GET /v1/access", h.accessList)
	mux.HandleFunc("GET /v1/rbl/{addr}", h.rblTest)
	mux.HandleFunc("POST /v1/rbl/{list}/reset", h.rblReset)
	h.verifyRoutes(mux)
	h.contentRoutes(mux)
	for pattern, call := range b.Calls() {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := call(r)
			if err != nil {
				fail(w, http.StatusBadRequest, err)
				return
			}
			reply(w, answer)
		})
	}
	return &Server{log: log, http: &http.Server{
		Handler:           withToken(token, mux),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(log.Named("http")),
	}}
}

// Serve answers on l until Stop. It returns nil after Stop.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// Stop closes the door, waiting a short while for calls under way.
func (s *Server) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownIn)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

// withToken asks for the token on everything but the health paths, which
// tell nothing and which load balancers cannot authenticate to.
func withToken(token string, next http.Handler) http.Handler {
	if token == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			next.ServeHTTP(w, r)
			return
		}
		got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || subtle.ConstantTimeCompare([]byte(got), []byte(token)) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="postern"`)
			fail(w, http.StatusUnauthorized, errors.New("this address needs the token of admin.token_file"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

type handler struct {
	b   Backend
	log *zap.Logger
}

func (h *handler) ready(w http.ResponseWriter, r *http.Request) {
	if err := h.b.Ready(r.Context()); err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}

func (h *handler) status(w http.ResponseWriter, r *http.Request) { reply(w, h.b.Status(r.Context())) }

func (h *handler) reload(w http.ResponseWriter, r *http.Request) {
	if err := h.b.Reload(r.Context()); err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return
	}
	reply(w, struct{}{})
}

func (h *handler) explain(w http.ResponseWriter, r *http.Request) {
	var q Question
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	d, err := h.b.Explain(r.Context(), q)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	reply(w, d)
}

func (h *handler) decisions(w http.ResponseWriter, r *http.Request) {
	n := 50
	if s := r.URL.Query().Get("n"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 1 {
			fail(w, http.StatusBadRequest, fmt.Errorf("n=%q is not a positive number", s))
			return
		}
	}
	reply(w, h.b.Decisions(n))
}

func (h *handler) decision(w http.ResponseWriter, r *http.Request) {
	ref := strings.ToUpper(r.PathValue("ref"))
	rec, ok := h.b.Decision(ref)
	if !ok {
		fail(w, http.StatusNotFound, fmt.Errorf("no decision %s: the journal keeps the newest ones of this run; look for ref=%s in the log", ref, ref))
		return
	}
	reply(w, rec)
}

func filter(r *http.Request) (greylist.Filter, error) {
	q := r.URL.Query()
	f := greylist.Filter{Kind: q.Get("kind"), Who: q.Get("who"), Sender: q.Get("sender"), Recipient: q.Get("recipient")}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return f, fmt.Errorf("limit=%q is not a number", s)
		}
		f.Limit = n
	}
	switch f.Kind {
	case "", greylist.KindTriplet, greylist.KindCredit, greylist.KindWaiting:
		return f, nil
	}
	return f, fmt.Errorf("kind=%q: one of triplet, credit, waiting", f.Kind)
}

// greylistList writes one JSON value a line as the store yields them, so that
// a large store is never held in memory.
func (h *handler) greylistList(w http.ResponseWriter, r *http.Request) {
	f, err := filter(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	enc := json.NewEncoder(w)
	wrote := false
	err = h.b.Greylist().ListGreylist(r.Context(), f, time.Now(), func(e greylist.Entry) bool {
		wrote = true
		return enc.Encode(e) == nil
	})
	switch {
	case err == nil:
	case wrote:
		// The status line is gone; a broken body is the honest end.
		h.log.Warn("greylist listing broke off", zap.Error(err))
		panic(http.ErrAbortHandler)
	default:
		fail(w, http.StatusServiceUnavailable, err)
	}
}

func (h *handler) greylistForget(w http.ResponseWriter, r *http.Request) {
	f, err := filter(r)
	if err == nil && f.Who == "" && f.Sender == "" && f.Recipient == "" && r.URL.Query().Get("all") != "true" {
		err = errors.New("say what to forget: who, sender or recipient, or all=true")
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	n, err := h.b.Greylist().ForgetGreylist(r.Context(), f)
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	h.log.Info("greylist entries forgotten on request", zap.Int("entries", n), zap.Any("filter", f))
	reply(w, Forgotten{n})
}

// Forgotten is the answer to a forget call.
type Forgotten struct {
	Entries int `json:"entries"`
}

func (h *handler) greylistStats(w http.ResponseWriter, r *http.Request) {
	c, err := h.b.Greylist().CountGreylist(r.Context(), time.Now())
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	reply(w, c)
}

// accessList writes one JSON value a line.
func (h *handler) accessList(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jsonl")
	enc := json.NewEncoder(w)
	h.b.AccessEntries(func(e access.Entry) bool { return enc.Encode(e) == nil })
}

func (h *handler) rblTest(w http.ResponseWriter, r *http.Request) {
	addr, err := netip.ParseAddr(r.PathValue("addr"))
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("%q is not an IP address", r.PathValue("addr")))
		return
	}
	report, err := h.b.TestLists(r.Context(), addr.Unmap().WithZone(""))
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	reply(w, report)
}

func (h *handler) rblReset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("list")
	known, held := h.b.ResetList(name)
	if !known {
		fail(w, http.StatusNotFound, fmt.Errorf("there is no list %q", name))
		return
	}
	h.log.Info("a DNS list was reset on request", zap.String("list", name), zap.Bool("was_held", held))
	reply(w, WasHeld{held})
}

// WasHeld is the answer to a reset call.
type WasHeld struct {
	Held bool `json:"held"`
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
}

type failure struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(failure{err.Error()}) // as in reply
}
