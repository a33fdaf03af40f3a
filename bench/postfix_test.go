package bench

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/internal/postfixtest"
)

// postfixRounds is how often each load is sent each way; the median counts.
const postfixRounds = 3

// way is one smtpd service of the Postfix and what it asks.
type way struct {
	name, settings string
	port           int
	asks           *child // whose processor time is counted; nil: nobody's
}

// sending is what smtp-source sends.
type sending struct {
	name string
	n    int
	args []string
}

var sendings = []sending{
	{"1 kB, one session", 300, []string{"-s", "1", "-l", "1000"}},
	{"1 kB, twenty sessions", 1000, []string{"-s", "20", "-l", "1000"}},
	{"1 kB to 50 recipients, one session", 60, []string{"-s", "1", "-r", "50", "-l", "1000"}},
	{"1 kB to 50 recipients, twenty sessions", 100, []string{"-s", "20", "-r", "50", "-l", "1000"}},
	{"1 MB, one session", 40, []string{"-s", "1", "-l", "1000000"}},
	{"1 MB, twenty sessions", 80, []string{"-s", "20", "-l", "1000000"}},
}

// postfixFigures measures mail from a client through a real Postfix, which
// asks nobody, one of the doors, or a milter that does nothing.
func postfixFigures(t *testing.T) {
	postfixtest.Require(t, "postfix", "postconf", "smtp-source")
	dir, err := os.MkdirTemp("/tmp", "pb") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // best effort
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	policyTCP, milterTCP, floorTCP := freeAddress(t), freeAddress(t), freeAddress(t)
	write(t, in("headers"), "/^X-Nothing:/ REJECT no\n")
	write(t, in("body"), "/nothing of the kind/ REJECT no\n")
	write(t, in("postern.toml"), fmt.Sprintf(`
hostname = "mx.example.com"
[policy]
listen = ["unix:%[1]s/policy.sock", "tcp:%[2]s"]
[milter]
listen = ["unix:%[1]s/milter.sock", "tcp:%[3]s"]
[admin]
listen = ""
[store]
kind = "memory"
[log]
output = "file:%[1]s/log"
[chains.inbound]
checks = ["access"]
[[headers.checks]]
table = "regexp:%[1]s/headers"
[[headers.checks]]
table = "regexp:%[1]s/body"
kind = "body"
`, dir, policyTCP, milterTCP))
	d := start(t, "daemon", in("postern.toml"))
	floor := start(t, "milterfloor", in("floor.sock")+" "+floorTCP)
	openToAll(t, dir)

	policy := "-o smtpd_recipient_restrictions=reject_unauth_destination,check_policy_service,"
	milter := "-o smtpd_milters="
	ways := []*way{
		{name: "no filter"},
		{name: "policy door, unix", settings: policy + "unix:" + in("policy.sock"), asks: d},
		{name: "policy door, tcp", settings: policy + "inet:" + policyTCP, asks: d},
		{name: "milter door, unix", settings: milter + "unix:" + in("milter.sock"), asks: d},
		{name: "milter door, tcp", settings: milter + "inet:" + milterTCP, asks: d},
		{name: "milter that does nothing, unix", settings: milter + "unix:" + in("floor.sock"), asks: floor},
		{name: "milter that does nothing, tcp", settings: milter + "inet:" + floorTCP, asks: floor},
	}
	p := postfixtest.Start(t, false, "message_size_limit = 20000000", "virtual_transport = discard", "default_process_limit = 100")
	master, err := os.OpenFile(filepath.Join(p.Config, "master.cf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range ways {
		address := freeAddress(t)
		w.port = portOf(t, address)
		if _, err := fmt.Fprintf(master, "%s inet n - n - - smtpd %s\n", address, w.settings); err != nil {
			t.Fatal(err)
		}
	}
	if err := master.Close(); err != nil {
		t.Fatal(err)
	}
	p.Command("reload")
	for _, w := range ways {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(w.port)))
			if err == nil {
				_ = c.Close() // it was only to see
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v\n%s", w.name, err, p.Log())
			}
		}
	}
	for _, l := range sendings {
		took, costs, stalls := make([][]float64, len(ways)), make([][]float64, len(ways)), make([][]float64, len(ways))
		for range postfixRounds {
			for i, w := range ways {
				ms, cost, stalled := mail(t, w, l)
				took[i], costs[i], stalls[i] = append(took[i], ms), append(costs[i], cost), append(stalls[i], stalled)
			}
		}
		t.Log(l.name)
		for i, w := range ways {
			line := fmt.Sprintf("  %-34s %7.2f ms a message, %5.2f delayed acknowledgements", w.name, median(took[i]), median(stalls[i]))
			if w.asks != nil {
				line += fmt.Sprintf(", %.0f µs of the filter's processor time", median(costs[i]))
			}
			t.Log(line)
		}
	}
}

// mail sends a load one way and returns, for a message, the milliseconds, the
// filter's microseconds of processor time and the acknowledgements for which
// somebody on this host may have waited.
func mail(t *testing.T, w *way, l sending) (ms, cost, stalled float64) {
	t.Helper()
	used := time.Duration(0)
	if w.asks != nil {
		used = w.asks.cpu(t)
	}
	acks := delayedACKs(t)
	args := append([]string{"-m", strconv.Itoa(l.n), "-f", "a@example.org", "-t", "b@example.com"}, l.args...)
	began := time.Now()
	out, err := exec.Command("smtp-source", append(args, fmt.Sprintf("inet:127.0.0.1:%d", w.port))...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s, %s: %v\n%s", w.name, l.name, err, out)
	}
	ms = time.Since(began).Seconds() * 1000 / float64(l.n)
	if w.asks != nil {
		cost = float64((w.asks.cpu(t) - used).Microseconds()) / float64(l.n)
	}
	return ms, cost, (delayedACKs(t) - acks) / float64(l.n)
}

// delayedACKs returns how many acknowledgements this host's kernel has held
// back until its timer went off.
func delayedACKs(t *testing.T) float64 {
	t.Helper()
	f, err := os.Open("/proc/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	var names []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		switch {
		case len(fields) == 0 || fields[0] != "TcpExt:":
		case names == nil:
			names = fields
		default:
			for i, name := range names {
				if name == "DelayedACKs" {
					n, err := strconv.ParseFloat(fields[i], 64)
					if err != nil {
						t.Fatal(err)
					}
					return n
				}
			}
		}
	}
	t.Fatal("the kernel does not count delayed acknowledgements")
	return 0
}

// openToAll lets Postfix's processes, which are not root's, use the sockets.
func openToAll(t *testing.T, dir string) {
	t.Helper()
	sockets, err := filepath.Glob(filepath.Join(dir, "*.sock"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sockets {
		if err := os.Chmod(s, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// freeAddress returns an address of loopback that was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // somebody else will listen
	return l.Addr().String()
}

func portOf(t *testing.T, address string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
