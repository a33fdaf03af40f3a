package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"postern": func() { os.Exit(Main()) },
	})
}

// TestScenarios tells what an administrator sees, one scenario a file.
func TestScenarios(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: false,
		Setup: func(env *testscript.Env) error {
			// A unix socket's path must be short; $WORK may be long.
			dir, err := os.MkdirTemp("", "ps")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(dir) }) // only sockets
			env.Setenv("RUN", dir)
			env.Setenv("POSTERN_CONFIG", filepath.Join(env.WorkDir, "postern.toml"))
			dns := dnstest.Start(env.T().(testing.TB))
			env.Setenv("DNS", dns.Addr())
			dns.Add(
				"2.0.0.127.bl.example. 60 IN A 127.0.0.2",
				"9.2.0.192.bl.example. 60 IN A 127.0.0.2",
				"9.2.0.192.bl.example. 60 IN TXT \"listed for a test\"",
				"example.org. 60 IN MX 10 mail.example.org.", "mail.example.org. 60 IN A 192.0.2.7",
			)
			env.Values["dns"] = dns
			hop := smtptest.Start(env.T().(testing.TB)).Know("ann@example.com", "bob@example.com")
			env.Values["hop"] = hop
			env.Setenv("HOP", hop.NextHop())
			// The files say $RUN and $DNS.
			return filepath.WalkDir(env.WorkDir, func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() || !strings.HasSuffix(path, ".toml") {
					return err
				}
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				out := os.Expand(string(text), func(name string) string {
					if name == "RUN" || name == "DNS" || name == "WORK" || name == "HOP" {
						return env.Getenv(name)
					}
					return "$" + name
				})
				return os.WriteFile(path, []byte(out), 0o600)
			})
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"listening": listening,
			"eventually": func(ts *testscript.TestScript, neg bool, args []string) {
				eventually(ts, neg, args)
			},
			"replace": replace,
			"hangup":  hangup,
			// spf NAME TEXT gives a name one TXT record, none for "".
			"spf": func(ts *testscript.TestScript, _ bool, args []string) {
				dns := ts.Value("dns").(*dnstest.Server)
				dns.Remove(args[0] + ".")
				if args[1] != "" {
					dns.Add(fmt.Sprintf("%s. 60 IN TXT %q", args[0], args[1]))
				}
			},
			// accept LIST takes the update of a provider's list that waits.
			"accept": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(ts.Exec("postern", "provider", "diff", args[0]))
				_, id, _ := strings.Cut(ts.ReadFile("stdout"), "to take it: postern provider accept "+args[0]+" ")
				ts.Check(ts.Exec("postern", "provider", "accept", args[0], strings.TrimSpace(strings.SplitN(id, "\n", 2)[0])))
			},
			// hop VERB REPLY has the next hop answer so; "" as usual.
			"hop": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Value("hop").(*smtptest.Server).Answer(args[0], args[1])
			},
		},
	})
}

// listening waits until somebody answers at each of the unix sockets.
func listening(ts *testscript.TestScript, _ bool, paths []string) {
	for _, p := range paths {
		deadline := time.Now().Add(30 * time.Second)
		for {
			c, err := net.Dial("unix", p)
			if err == nil {
				_ = c.Close() // only to see
				break
			}
			if time.Now().After(deadline) {
				ts.Fatalf("nobody listens at %s: %v", p, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// eventually REGEXP COMMAND... repeats a command until its output matches.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: eventually TEXT COMMAND...")
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := ts.Exec(args[1], args[2:]...)
		out := ts.ReadFile("stdout") + ts.ReadFile("stderr")
		if strings.Contains(out, args[0]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("never saw %q, but %q (%v)", args[0], out, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// hangup sends SIGHUP to the daemon.
func hangup(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ts.Exec("postern", "--json", "status"))
	var st struct{ PID int }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &st))
	ts.Check(syscall.Kill(st.PID, syscall.SIGHUP))
}

// replace FILE OLD NEW changes a text in a file.
func replace(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	text := ts.ReadFile(path)
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(path+".new", []byte(strings.ReplaceAll(text, args[1], args[2])), 0o600))
	ts.Check(os.Rename(path+".new", path))
}
