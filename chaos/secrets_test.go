package chaos

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"postern/internal/proctest"
)

// Secrets are planted wherever the configuration takes one, and all that needs
// them fails, which is told at level debug. They are in nothing that comes out:
// logs, metrics, replies, what commands and calls answer, the journal, the dump
// of all goroutines when the process is made to end by it.
func TestSecretsStayWithin(t *testing.T) {
	t.Parallel()
	secrets := map[string]string{
		"redis": "rEdIsSeCrEt7391", "list": "listkeysecret4417", "hook": "hOoKsEcReT8812", "token": "tOkEnSeCrEt2093", "ldap": "lDaPsEcReT5528",
	}
	keys := t.TempDir()
	path, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(keys, "empty.toml")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "-c", empty, "dkim", "new", "--dir", filepath.Join(keys, "dkim"), "--selector", "s", "example.com").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var key string
	if err := filepath.WalkDir(filepath.Join(keys, "dkim"), func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			key = name
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s is no key", key)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	secrets["signing key"] = lines[len(lines)-2][:20] // the last of the base64, which no public key shares
	secrets["signing key, raw"] = string(block.Bytes[len(block.Bytes)-20:])
	file := func(name string) string {
		path := filepath.Join(keys, name)
		text := secrets[name]
		if name == "hook" {
			text = "http://127.0.0.1:1/hook/" + text
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	w := newWorld(t, &fault{redis: true, edit: func(text string) string {
		for _, r := range [][2]string{
			{"[log]\n", "[log]\nlevel = \"debug\"\n"},
			{"[store.redis]\n", fmt.Sprintf("[store.redis]\npassword_file = %q\n", file("redis"))},
			{"journal\"\n", "journal\"\nkeep = \"all\"\n"},
			{"[client]\n", fmt.Sprintf("[[rbl.zone]]\nzone = \"bl.example\"\nkey_file = %q\n[client]\n", file("list"))},
			{"[greylist]\n", fmt.Sprintf(`[chains.inbound]
checks = ["access", "rbl", "limit", "verify", "greylist"]
[[limit.rule]]
name = "few"
key = ["sender"]
rate = "1/1h"
notify = ["hook"]
[[limit.notify]]
name = "hook"
url_file = %q
token_file = %q
timeout = "1s"
[[verify.ldap]]
name = "dir"
urls = ["ldap://127.0.0.1:1"]
bind_dn = "cn=postern"
password_file = %q
base = "dc=example"
[[verify.route]]
domains = ["example.com"]
sources = ["ldap:dir"]
[dkim]
[[dkim.domain]]
domain = "example.com"
[[dkim.domain.key]]
selector = "s"
file = %q
[greylist]
`, file("hook"), file("token"), file("ldap"), key)},
		} {
			if !strings.Contains(text, r[0]) {
				t.Fatalf("the configuration has no %q", r[0])
			}
			text = strings.Replace(text, r[0], r[1], 1)
		}
		return text
	}})
	var out bytes.Buffer
	// Some of it works, and some does not.
	w.redis.do("CONFIG", "SET", "requirepass", secrets["redis"])
	a := &doorAsker{socket: w.d.socket()}
	ask := func() {
		for _, k := range []kind{newcomer, denied, listed, newcomer} {
			c := someone(k)
			for range 3 {
				v, text := a.ask(c)
				fmt.Fprintln(&out, v, text)
			}
		}
	}
	ask()
	w.redis.kill()
	ask()
	a.close()
	for _, args := range [][]string{
		{"config", "dump"}, {"check"}, {"status"}, {"--json", "status"}, {"journal", "search", "--limit", "0"}, {"--json", "journal", "search", "--limit", "0"}, {"rbl", "status"}, {"--json", "rbl", "status"},
		{"rbl", "check", "198.18.7.7"}, {"explain", "--client", "198.18.7.7", "--sender", "a@example.org", "--recipient", "b@example.com"}, {"limit", "test"}, {"verify", "next-hops"}, {"dkim", "dns"},
		{"dkim", "check"}, {"verify", "check", "b@example.com"}, {"provider", "list"},
	} {
		// Several of them fail, as they should with nothing that answers.
		b, _ := exec.Command(w.d.path, append([]string{"-c", w.d.config}, args...)...).CombinedOutput()
		fmt.Fprintf(&out, "%v\n%s\n", args, b)
	}
	for _, call := range []string{"/metrics", "/v1/status", "/v1/access", "/v1/decisions", "/v1/greylist", "/v1/limit", "/v1/verify", "/v1/verify/next-hops", "/v1/providers", "/v1/rbl/198.18.7.8", "/v1/journal/search", "/v1/headers", "/debug/pprof/cmdline", "/debug/vars"} {
		b, err := w.d.call("GET", call)
		fmt.Fprintf(&out, "%s\n%s %v\n", call, b, err)
	}
	if !strings.Contains(out.String(), "/v1/status") {
		t.Fatal("nothing was answered")
	}
	proctest.Signal(t, w.d.pid(), syscall.SIGQUIT)
	<-w.d.done //nolint:errcheck // it ends with a dump, as meant
	w.d.cmd = nil
	log, err := os.ReadFile(w.d.logFile())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(log, []byte("goroutine ")) || !bytes.Contains(log, []byte(`"level":"debug"`)) {
		t.Error("the log holds no dump of goroutines, or nothing of level debug")
	}
	out.Write(log)
	// What is in the files of state and journal.
	if err := filepath.WalkDir(w.state(), func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		out.Write(b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	all := out.String()
	for what, secret := range secrets {
		for _, form := range []string{secret, strings.ToLower(secret), url.QueryEscape(secret), fmt.Sprintf("%x", secret)} {
			if i := strings.Index(all, form); i >= 0 {
				t.Errorf("the secret of %s comes out: %.300q", what, all[max(0, i-200):min(len(all), i+60)])
			}
		}
	}
}
