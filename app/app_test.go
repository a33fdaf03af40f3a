package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/admin"
	"postern/app"
	"postern/config"
	"postern/greylist"
	"postern/internal/adminapi"
	"postern/internal/policytest"
	"postern/journal"
	"postern/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a directory with a configuration.
type site struct {
	t    *testing.T
	dir  string
	path string
}

func newSite(t *testing.T, text string) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "pa") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // best effort
	s := &site{t, dir, filepath.Join(dir, "postern.toml")}
	s.write(text)
	return s
}

func (s *site) write(text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path, []byte(strings.ReplaceAll(text, "{dir}", s.dir)), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) app() *app.App {
	s.t.Helper()
	load := func() (*config.Config, error) {
		cfg, _, err := config.Load(s.path)
		return cfg, err
	}
	cfg, err := load()
	if err != nil {
		s.t.Fatal(err)
	}
	a, err := app.New(cfg, app.Options{Version: "1.2.3", Log: zap.NewNop(), Load: load})
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *site) start() *app.App {
	s.t.Helper()
	a := s.app()
	if err := a.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		a.Stop(ctx)
	})
	return a
}

const plain = `
[policy]
listen = ["unix:{dir}/p.sock"]
[admin]
listen = "unix:{dir}/a.sock"
[store]
path = "{dir}/state.db"
[dns]
servers = ["127.0.0.1:1"]
`

func TestAFailedStartLeavesNothingBehind(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the end
	s := newSite(t, strings.Replace(plain, `"unix:{dir}/p.sock"`, fmt.Sprintf(`"unix:{dir}/p.sock", "tcp:%s"`, l.Addr()), 1))
	if err := s.app().Start(); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("an address that is taken: %v", err)
	}
	for _, name := range []string{"p.sock", "a.sock"} {
		if _, err := os.Stat(filepath.Join(s.dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	s.write(plain) // the store is free again
	s.start()
}

func TestAdminSocket(t *testing.T) {
	s := newSite(t, plain+"[access]\ndeny = [\"inline:192.0.2.66\"]\n[greylist]\nprofile = \"strict\"\n")
	s.start()
	st, err := os.Stat(filepath.Join(s.dir, "a.sock"))
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode of the admin socket: %v %v", st.Mode(), err)
	}
	c := admin.Client{Client: adminapi.NewClient(filepath.Join(s.dir, "a.sock"), "")}
	raw, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		admin.Status
		Store store.Status `json:"store"`
	}
	if err := json.Unmarshal(raw, &status); err != nil || status.Version != "1.2.3" || status.PID != os.Getpid() || len(status.Chains["inbound"]) != 7 || !status.Store.Healthy {
		t.Errorf("status %+v %v", status, err)
	}
	p := policytest.Dial(t, &net.UnixAddr{Name: filepath.Join(s.dir, "p.sock"), Net: "unix"})
	if a := p.MustAsk(t, policytest.Sample().With("client_address", "192.0.2.66")); !strings.HasPrefix(a, "554 5.7.1 Access denied [ref ") {
		t.Error(a)
	}
	if a := p.MustAsk(t, policytest.Sample()); !strings.HasPrefix(a, "DEFER_IF_PERMIT 4.2.0 ") {
		t.Error(a)
	}
	kept := journal.Admin{Client: c.Client}
	recent, err := kept.Recent(t.Context(), 10)
	if err != nil || len(recent) != 2 {
		t.Fatalf("decisions %+v %v", recent, err)
	}
	if one, err := kept.Decision(t.Context(), strings.ToLower(recent[1].Decision.Reference)); err != nil || one.Client != "192.0.2.66" {
		t.Errorf("decision %+v %v", one, err)
	}
	text, err := c.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`postern_build_info{version="1.2.3"} 1`, `postern_decisions_total{action="reject",chain="inbound",stage="rcpt"} 1`,
		`postern_check_verdicts_total{action="defer-if-permit",check="greylist",outcome="ran",reason="greylist-first-contact"} 1`,
		"postern_config_last_reload_successful 1", `postern_access_list_entries 1`, "postern_store_entries ", "go_goroutines ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	for _, q := range []admin.Question{{Client: "nonsense"}, {Client: "192.0.2.1", Stage: "lunch"}, {Client: "192.0.2.1", Context: "nowhere"}} {
		if _, err := c.Explain(t.Context(), q); err == nil {
			t.Errorf("%+v has been explained", q)
		}
	}
	d, err := c.Explain(t.Context(), admin.Question{Client: "::ffff:192.0.2.66", ClientName: "x.example"})
	if err != nil || d.Check != "access" || len(d.Steps) == 0 {
		t.Errorf("explained %+v %v", d, err)
	}
}

func TestAdminOverTCPNeedsTheToken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close() // the daemon takes it
	s := newSite(t, strings.Replace(plain, `"unix:{dir}/a.sock"`, fmt.Sprintf("\"tcp:%s\"\ntoken_file = \"{dir}/token\"", addr), 1))
	if err := os.WriteFile(filepath.Join(s.dir, "token"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	if _, err := (admin.Client{Client: adminapi.NewClient("tcp:"+addr, "s3cret")}).Status(t.Context()); err != nil {
		t.Error(err)
	}
	for _, token := range []string{"", "wrong", "s3cre"} {
		if _, err := (admin.Client{Client: adminapi.NewClient("tcp:"+addr, token)}).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "needs the token") {
			t.Errorf("with the token %q: %v", token, err)
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 401, "/v1/status": 401, "/nowhere": 401} {
		res, err := client.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body) // only the status counts
		_ = res.Body.Close()                 // as above
		if res.StatusCode != want {
			t.Errorf("%s without the token: %d", path, res.StatusCode)
		}
	}
}

// delay is that of greylisting.
func delay(st *admin.Status) time.Duration {
	i := slices.IndexFunc(st.Parts, func(p admin.Part) bool { return p.Name == "greylist" })
	return st.Parts[i].Status.(greylist.Status).Delay.D()
}

func TestReload(t *testing.T) {
	s := newSite(t, plain)
	a := s.start()
	addrs := func() string {
		var out []string
		for _, addr := range a.Addresses() {
			out = append(out, filepath.Base(addr.String()))
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	s.write(strings.Replace(plain, `"unix:{dir}/p.sock"`, `"unix:{dir}/p.sock", "unix:{dir}/q.sock"`, 1) + "[greylist]\ndelay = \"9m\"\nhints = 10\n")
	if err := a.Reload(t.Context()); err != nil || addrs() != "p.sock q.sock" {
		t.Errorf("a further address: %v, listening on %s", err, addrs())
	}
	if st := a.Status(t.Context()); delay(st) != 9*time.Minute || len(st.Config.Restarts) != 0 {
		t.Errorf("status %+v", st.Config)
	}
	// An address that cannot be opened refuses the whole reload.
	s.write(strings.Replace(plain, `"unix:{dir}/p.sock"`, `"unix:{dir}/nowhere/r.sock"`, 1) + "[greylist]\ndelay = \"1m\"\n")
	if err := a.Reload(t.Context()); err == nil || addrs() != "p.sock q.sock" {
		t.Errorf("an address that cannot be opened: %v, listening on %s", err, addrs())
	}
	if st := a.Status(t.Context()); delay(st) != 9*time.Minute || st.Config.Fault == "" {
		t.Errorf("status %+v", st.Config)
	}
	s.write(strings.ReplaceAll(plain, "state.db", "other.db") + "[admin]\ntoken_file = \"\"\n")
	if err := a.Reload(t.Context()); err == nil {
		t.Error("a section that stands twice")
	}
	s.write(strings.Replace(strings.ReplaceAll(plain, "state.db", "other.db"), "[admin]", "[journal]\nmemory = 50\n[admin]", 1))
	if err := a.Reload(t.Context()); err != nil || addrs() != "p.sock" {
		t.Errorf("%v, listening on %s", err, addrs())
	}
	if st := a.Status(t.Context()); st.Config.Fault != "" || strings.Join(st.Config.Restarts, " ") != "store journal" {
		t.Errorf("status %+v", st.Config)
	}
	// Many at once, while requests come.
	p := policytest.Dial(t, &net.UnixAddr{Name: filepath.Join(s.dir, "p.sock"), Net: "unix"})
	done := make(chan error, 10)
	for range 10 {
		go func() { done <- a.Reload(context.Background()) }()
	}
	for range 200 {
		p.MustAsk(t, policytest.Sample())
	}
	for range 10 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
