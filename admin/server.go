// Package admin is the door for the administrator: HTTP on a unix socket (or
// a tcp address with a token) with metrics, health, and the calls behind the
// command line. It knows no part of the daemon: their calls come from them (package
// adminapi).
//
// Paths: /metrics (Prometheus), /healthz (the process answers), /readyz (it
// can decide), and /v1/... (JSON, for `postern`; not a stable interface).
package admin

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/internal/listen"
	"postern/policy"
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
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Listen: "unix:/run/postern/admin.sock"}
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
}

// Backend is the daemon behind the door.
type Backend interface {
	// Ready returns nil when requests can be decided.
	Ready(ctx context.Context) error
	Status(ctx context.Context) *Status
	// Reload reads the configuration again; the error says why the old one stays.
	Reload(ctx context.Context) error
	// Explain runs a request without changing anything.
	Explain(ctx context.Context, q Question) (*policy.Decision, error)
}

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

// maxQuestion is the most bytes of a Question as JSON.
const maxQuestion = 64 << 10

// Server serves a Backend.
type Server struct {
	http *http.Server
	log  *zap.Logger
}

// shutdownIn bounds how long Stop waits for calls under way.
const shutdownIn = 2 * time.Second

// maxBody is the most bytes of a request's body; most calls take far less.
const maxBody = 8 << 20

// NewServer returns a server for one daemon and what its parts offer. token is
// "" for a unix socket, whose file mode says who may use it.
func NewServer(b Backend, parts []adminapi.Calls, token string, gather prometheus.Gatherer, log *zap.Logger) *Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gather, promhttp.HandlerOpts{}))
	for _, calls := range append([]adminapi.Calls{own(b)}, parts...) {
		for pattern, handler := range calls {
			mux.Handle(pattern, handler)
		}
	}
	return &Server{log: log, http: &http.Server{
		Handler:           withToken(token, http.MaxBytesHandler(mux, maxBody)),
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
			adminapi.Fail(w, adminapi.Unauthorized(errors.New("this address needs the token of admin.token_file")))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// own are the calls that are about no part.
func own(b Backend) adminapi.Calls {
	return adminapi.Calls{
		"GET /healthz": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }),
		"GET /readyz": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := b.Ready(r.Context()); err != nil {
				http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
				return
			}
			_, _ = io.WriteString(w, "ready\n")
		}),
		"GET /v1/status": adminapi.Answer(func(r *http.Request) (any, error) { return b.Status(r.Context()), nil }),
		"GET /v1/status/text": adminapi.Text(func(r *http.Request) (string, error) {
			var text strings.Builder
			b.Status(r.Context()).WriteStatus(&text, time.Now())
			return text.String(), nil
		}),
		"POST /v1/reload": adminapi.Answer(func(r *http.Request) (any, error) {
			if err := b.Reload(r.Context()); err != nil {
				return nil, adminapi.Refused(err)
			}
			return struct{}{}, nil
		}),
		"POST /v1/explain": adminapi.Answer(func(r *http.Request) (any, error) {
			var q Question
			if err := adminapi.Decode(r, maxQuestion, &q); err != nil {
				return nil, err
			}
			return b.Explain(r.Context(), q)
		}),
	}
}
