package provider

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"postern/internal/postfixtest"
)

// tool returns the path of a Postfix command.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path := filepath.Join(dir, name); dir != "" {
			if st, err := os.Stat(path); err == nil && !st.IsDir() {
				return path
			}
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed: what Postfix makes of exported files is not tested", name)
	return ""
}

func TestExportedFiles(t *testing.T) {
	z := newZone(map[string]string{"p.example": good})
	cfg := testConfig(t)
	dir := t.TempDir()
	path, screen := filepath.Join(dir, "p.cidr"), filepath.Join(dir, "p.postscreen")
	cfg.Lists[0].Exports = []ExportConfig{{Path: path, Mode: "0640"}, {Path: screen, Result: "permit"}}
	if err := os.WriteFile(path, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, logs := newSet(t, cfg, Options{Resolver: z})
	l := s.lists[0]
	l.export()
	if text, _ := os.ReadFile(path); string(text) != "old\n" {
		t.Error("written before there was a list")
	}
	refresh := func() os.FileInfo {
		t.Helper()
		if _, err := s.Refresh(t.Context(), "p", false); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	first := refresh()
	const want = "# 2 networks of p, written by postern: do not edit\n192.0.2.0/24\tOK\n2001:db8::/32\tOK\n"
	if text, _ := os.ReadFile(path); string(text) != want || first.Mode().Perm() != 0o640 {
		t.Errorf("%v %q", first.Mode(), text)
	}
	if text, _ := os.ReadFile(screen); !strings.Contains(string(text), "192.0.2.0/24\tpermit\n") {
		t.Errorf("%q", text)
	}
	var b bytes.Buffer
	if err := s.Export(&b, "p", ""); err != nil || b.String() != want {
		t.Errorf("%q %v", b.String(), err)
	}

	// Not touched while nothing changes; put right when somebody else has.
	if st := refresh(); !os.SameFile(st, first) {
		t.Error("written again for nothing")
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if st := refresh(); st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", st.Mode())
	}
	if err := os.WriteFile(path, []byte(strings.Replace(want, "OK", "NO", 1)), 0o640); err != nil {
		t.Fatal(err)
	}
	refresh()
	if text, _ := os.ReadFile(path); string(text) != want {
		t.Errorf("%q", text)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if l := loud(logs); l != "" {
		t.Errorf("log: %s", l)
	}

	// What cannot be written is loud, and the list is in force all the same.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere/else", path); err != nil {
		t.Fatal(err)
	}
	z.set("p.example", good+" ip4:192.0.3.0/24") // behind -all: nothing changes
	z.set("p.example", "v=spf1 ip4:192.0.2.0/23 ip6:2001:db8::/32")
	if _, err := s.Refresh(t.Context(), "p", false); err != nil || listed(t, s) != "192.0.2.0/23 2001:db8::/32" {
		t.Errorf("%s %v", listed(t, s), err)
	}
	if l := loud(logs); l != "error: a list could not be written for Postfix\n" || !strings.Contains(s.Status()[0].ExportError, "is not a regular file") {
		t.Errorf("log: %s, status %+v", l, s.Status()[0])
	}
	if text, _ := os.ReadFile(screen); !strings.Contains(string(text), "192.0.2.0/23\tpermit") {
		t.Error("the other file was not written")
	}
}

func TestExportOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away: the owner of exported files is not tested")
	}
	path := filepath.Join(t.TempDir(), "x")
	e := ExportConfig{Path: path, Owner: "1234:2345"}
	for range 2 {
		if _, err := e.write([]byte("text\n")); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if s := st.Sys().(*syscall.Stat_t); s.Uid != 1234 || s.Gid != 2345 || st.Mode().Perm() != 0o644 {
			t.Errorf("%d:%d %v", s.Uid, s.Gid, st.Mode())
		}
	}
	if written, err := e.write([]byte("text\n")); written || err != nil {
		t.Errorf("written again: %v", err)
	}
	e.Owner = ":2346"
	if written, err := e.write([]byte("text\n")); !written || err != nil {
		t.Errorf("the group was not set: %v", err)
	}
}

// Postfix finds in an exported file exactly what is in the list.
func TestPostfixReadsExportedFiles(t *testing.T) {
	postmap := tool(t, "postmap")
	z := newZone(providerRecords(t))
	cfg := testConfig(t)
	path := filepath.Join(t.TempDir(), "p.cidr")
	cfg.Lists = []ListConfig{{Name: "p", Domains: []string{"outlook.com", "_spf.google.com"}, Exports: []ExportConfig{{Path: path}}}}
	s, _ := newSet(t, cfg, Options{Resolver: z})
	if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultChanged {
		t.Fatalf("%+v %v", rep, err)
	}
	table, _ := s.Table("p")
	probe := probes(rand.New(rand.NewPCG(5, 6)), table.Prefixes(), 2000)
	var in bytes.Buffer
	for _, a := range probe {
		in.WriteString(a.String() + "\n")
	}
	conf := t.TempDir()
	if err := postfixtest.WriteFile(filepath.Join(conf, "main.cf"), []byte("compatibility_level = 3.6\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(postmap, "-c", conf, "-q", "-", "cidr:"+path)
	cmd.Stdin = &in
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("postmap: %v\n%s", err, &stderr)
	}
	found := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		addr, result, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if result != "OK" {
			t.Fatalf("postmap: %q", line)
		}
		found[addr] = true
	}
	if len(found) < 100 {
		t.Errorf("only %d addresses were found", len(found))
	}
	for _, a := range probe {
		if found[a.String()] != table.Contains(a) {
			t.Errorf("%v: Postfix finds it: %v, in the list: %v", a, found[a.String()], table.Contains(a))
		}
	}
}

func TestPostfixLines(t *testing.T) {
	l := ListConfig{Name: "p", Exports: []ExportConfig{{Path: "/etc/postfix/p.cidr"}, {Path: "/etc/postfix/p.screen", Result: "permit"}}}
	text := strings.Join(l.PostfixLines("socketmap:unix:/run/postern/lookup.sock:provider-"), "\n")
	for _, want := range []string{
		"smtpd_client_restrictions = check_client_access cidr:/etc/postfix/p.cidr\n", "postscreen_access_list = permit_mynetworks, cidr:/etc/postfix/p.screen\n",
		"check_client_access socketmap:unix:/run/postern/lookup.sock:provider-p\n", "postfix reload",
	} {
		if !strings.Contains(text+"\n", want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if got := (&ListConfig{Name: "p"}).PostfixLines(""); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestSpans(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 8))
	base := netip.MustParseAddr("255.255.255.0").As4()
	random := func() []netip.Prefix {
		var out []netip.Prefix
		for range r.IntN(6) {
			out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{base[0], base[1], base[2], byte(r.IntN(256))}), 25+r.IntN(8)).Masked())
		}
		return out
	}
	for range 2000 {
		a, b := random(), random()
		sa, sb := spansOf(a), spansOf(b)
		cut := append(spans(nil), sa...)
		taken := cut.cutAll(sb)
		n := 0
		for i := range 256 {
			addr := netip.AddrFrom4([4]byte{base[0], base[1], base[2], byte(i)})
			inA, inB := false, false
			for _, p := range a {
				inA = inA || p.Contains(addr)
			}
			for _, p := range b {
				inB = inB || p.Contains(addr)
			}
			if inA {
				n++
			}
			for name, got := range map[string][2]bool{
				"a": {sa.contains(addr), inA}, "with": {sa.with(sb).contains(addr), inA || inB}, "without": {sa.without(sb).contains(addr), inA && !inB},
				"common": {sa.common(sb).contains(addr), inA && inB}, "cut": {cut.contains(addr), inA && !inB}, "taken": {normal(taken).contains(addr), inA && inB},
				"aggregated": {spansOf(Aggregate(a)).contains(addr), inA},
			} {
				if got[0] != got[1] {
					t.Fatalf("%s: %v in %v and %v: %v", name, addr, a, b, got[0])
				}
			}
		}
		if v4, v6 := sa.size(); int(v4) != n || v6 != 0 {
			t.Fatalf("size %v, want %d", v4, n)
		}
		for i, p := range Aggregate(a) {
			if i > 0 && Aggregate(a)[i-1].Overlaps(p) {
				t.Fatalf("%v overlap", Aggregate(a))
			}
		}
	}
	all := everything()
	if got := text(all.prefixes()); got != "0.0.0.0/0 ::/0" {
		t.Error(got)
	}
	if v4, v6 := all.size(); v4 != 1<<32 || v6 != float64(1<<64)*float64(1<<64) {
		t.Errorf("%v %v", v4, v6)
	}
	if got := text(Aggregate([]netip.Prefix{netip.MustParsePrefix("128.0.0.0/1"), netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("::1/0")})); got != "0.0.0.0/0 ::/0" {
		t.Error(got)
	}
}
