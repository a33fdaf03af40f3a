package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"etc", "lists", "state", "keys", "more", "logs", "run", "creds"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	in := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	t.Setenv("CREDENTIALS_DIRECTORY", in("creds"))
	write(t, in("keys"), "table", "sel.example.org example.org:sel:"+in("more", "sel.pem")+"\n")
	cfg := Default()
	cfg.Path = in("etc", "postern.toml")
	cfg.Store.Path = in("state", "state.db")
	cfg.Journal.Path = in("state", "journal") // is made
	cfg.Log.Output = "file:" + in("logs", "log")
	cfg.Admin.Listen = "unix:" + in("run", "admin.sock")
	cfg.DKIM.KeyTable = "refile:" + in("keys", "table")
	cfg.Store.Redis.CAFile = in("lists", "ca.pem")
	f := cfg.Files()
	for _, want := range []string{in("etc"), in("lists"), in("keys"), in("more"), in("creds")} {
		if !slices.Contains(f.Read, want) {
			t.Errorf("%s cannot be read: %q", want, f.Read)
		}
	}
	if want := []string{in("logs"), in("run"), in("state")}; !slices.Equal(slices.DeleteFunc(f.Write, func(d string) bool { return !strings.HasPrefix(d, dir) }), want) {
		t.Errorf("write %q, want %q", f.Write, want)
	}
}

func TestPaths(t *testing.T) {
	for text, want := range map[string][]string{
		"/a/b":                  {"/a/b"},
		"pcre:/a/b":             {"/a/b"},
		"unix:/a/b,mode=0600":   {"/a/b"},
		"/keys/%/sel.pem":       {"/keys"},
		"https://example.org/x": nil,
		"inline:from:a@b /c":    {"/c"},
		"a/b":                   nil,
		"tcp:127.0.0.1:1":       nil,
		"/":                     nil,
		"/a b=/c":               {"/a b=/c", "/c"},
	} {
		if got := paths(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestRunsPrograms(t *testing.T) {
	cfg := Default()
	if key := cfg.RunsPrograms(); key != "" {
		t.Errorf("by default: %s", key)
	}
	cfg.Reports.Enabled = true
	if key := cfg.RunsPrograms(); key != "dmarc_reports.enabled" {
		t.Errorf("with reports: %s", key)
	}
}
