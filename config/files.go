package config

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/confine"
	"postern/internal/listen"
	"postern/store"
)

// Files returns the directories of the files that the daemon uses with this
// configuration: all that it names, itself, and its systemd credentials.
// Directories, since files are replaced, and made, while it runs.
func (c *Config) Files() confine.Files {
	read := []string{c.Path, filepath.Join(filepath.Dir(c.Path), "conf.d", "x"), os.Getenv("CREDENTIALS_DIRECTORY")}
	// Every absolute path that stands in it, whatever the key.
	var text bytes.Buffer
	var all map[string]any
	if c.Dump(&text) == nil && toml.Unmarshal(text.Bytes(), &all) == nil {
		read = append(read, named(all)...)
	}
	// Paths may also be relative to where the daemon runs.
	if wd, err := os.Getwd(); err == nil && wd != "/" {
		read = append(read, wd)
	}
	for _, table := range []string{c.DKIM.KeyTable, c.DKIM.SigningTable} {
		read = append(read, pathsOfTable(table)...)
	}
	write := []string{c.JournalDir()}
	if c.Console.Listen != "" {
		// Its page on Postfix runs postconf(1).
		read = append(read, "/usr", "/lib", "/lib64", "/bin", "/sbin", "/var/spool/postfix")
		write = append(write, c.Console.Users(c.Store.Path), c.Console.Audit(c.Store.Path))
	}
	if c.Store.Kind == store.Embedded || c.Store.Kind == store.Redis && c.Store.Redis.Fallback == store.Embedded {
		write = append(write, c.Store.Path)
	}
	if len(c.Provider.Lists) > 0 {
		write = append(write, c.Provider.StateDir)
	}
	for i := range c.Provider.Lists {
		for _, e := range c.Provider.Lists[i].Exports {
			write = append(write, e.Path)
		}
	}
	if file, ok := strings.CutPrefix(c.Log.Output, "file:"); ok {
		write = append(write, file)
	}
	for _, addresses := range [][]listen.Address{c.Policy.Listen, c.Milter.Listen, c.Lookup.Listen} {
		for _, a := range addresses {
			write = append(write, a.Path)
		}
	}
	for _, text := range []string{c.Admin.Listen, c.Console.Listen} {
		var a listen.Address
		if text != "" && a.UnmarshalText([]byte(text)) == nil {
			write = append(write, a.Path)
		}
	}
	return confine.Files{Read: confine.Directories(false, given(read)...), Write: confine.Directories(true, given(write)...)}
}

// RunsPrograms names the key of a setting by which the daemon runs Postfix's
// sendmail, "" if there is none.
func (c *Config) RunsPrograms() string {
	if c.Reports.Enabled {
		return "dmarc_reports.enabled"
	}
	for i := range c.Limit.Notify {
		if len(c.Limit.Notify[i].To) > 0 {
			return index("limit.notify", i) + ".to"
		}
	}
	return ""
}

func given(paths []string) []string {
	return slices.DeleteFunc(paths, func(path string) bool { return path == "" })
}

// named returns the absolute paths in the texts of a value.
func named(v any) (out []string) {
	switch v := v.(type) {
	case string:
		return paths(v)
	case []any:
		for _, e := range v {
			out = append(out, named(e)...)
		}
	case map[string]any:
		for key, e := range v {
			if key != "sendmail" { // a program: see RunsPrograms
				out = append(out, named(e)...)
			}
		}
	}
	return out
}

// paths returns the absolute paths in a text: "/a/b", "pcre:/a/b",
// "unix:/a/b,mode=0600", and the directory of "/keys/%.pem".
func paths(text string) (out []string) {
	for i := range len(text) {
		if text[i] != '/' || i > 0 && !strings.ContainsRune(":=, \t", rune(text[i-1])) || i+1 == len(text) || text[i+1] == '/' {
			continue
		}
		path := text[i:]
		if end := strings.IndexAny(path, ",;\t\r\n\x00"); end >= 0 {
			path = path[:end]
		}
		if before, _, ok := strings.Cut(path, "%"); ok {
			path = filepath.Dir(before + "x")
		}
		out = append(out, path)
	}
	return out
}

// pathsOfTable returns the paths in one of opendkim's tables, which name files.
func pathsOfTable(source string) (out []string) {
	for _, path := range paths(source) {
		text, err := readFile(path)
		if err != nil {
			continue // whoever reads it says why
		}
		for line := range strings.Lines(string(text)) {
			for _, field := range strings.Fields(line) {
				out = append(out, paths(field)...)
			}
		}
	}
	return out
}
