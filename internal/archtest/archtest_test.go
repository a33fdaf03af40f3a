package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "postern"

// allowed is the table, lowest packages first. Checks import neither each
// other nor what runs them: each declares the methods it needs, and app passes
// something that has them.
var allowed = map[string]rule{
	// The words all others share.
	"policy": {},

	// Small things that know nothing else.
	"internal/fieldtext": {},
	"internal/filestamp": {},
	"internal/netstring": {},
	"internal/spfrecord": {},
	"internal/dkimsig":   {},
	"internal/meter":     {},
	"internal/reference": {},

	// Values, sockets, logs: below everything that uses them.
	"internal/conf":       {module: "policy"},
	"internal/adminapi":   {outside: zap},
	"internal/page":       {module: "internal/adminapi policy"},
	"internal/dkimverify": {module: "internal/dkimsig internal/mailaddr"},
	"internal/sendmail":   {},
	"internal/aggregate":  {outside: "golang.org/x/text/encoding/htmlindex golang.org/x/text/encoding/unicode golang.org/x/text/runes golang.org/x/text/transform"},
	"internal/when":       {module: "internal/mailaddr policy"},
	"internal/maillog":    {module: "internal/mailaddr"},
	"internal/mailaddr":   {module: "policy", outside: "golang.org/x/net/idna golang.org/x/net/publicsuffix"},
	"internal/listen":     {outside: "github.com/coreos/go-systemd/v22/activation"},
	"internal/quickack":   {},
	"internal/confine":    {outside: "github.com/landlock-lsm/go-landlock/landlock github.com/landlock-lsm/go-landlock/landlock/syscall"},
	"internal/fdstore":    {},
	"internal/door":       {module: "internal/listen internal/quickack", outside: metrics + " " + zap},
	"internal/logging":    {module: "internal/conf", outside: zap + " golang.org/x/term"},
	"table":               {module: "internal/conf internal/mailaddr policy", outside: bart + " github.com/dlclark/regexp2/v2"},
	"list":                {module: "internal/adminapi internal/conf internal/filestamp internal/mailaddr policy table", outside: bart + " " + metrics + " " + zap},
	"resolver":            {module: "internal/adminapi internal/conf internal/mailaddr", outside: dns + " " + cache + " " + metrics + " " + zap},

	"names": {module: "internal/conf internal/filestamp internal/mailaddr", outside: zap},

	// The checks.
	"access": {module: "internal/adminapi internal/conf internal/page list policy", outside: metrics + " " + zap},
	"client": {module: "internal/adminapi internal/conf internal/mailaddr internal/page list policy", outside: cache + " " + metrics + " " + zap},
	"rbl":    {module: "internal/adminapi internal/conf internal/mailaddr internal/page policy", outside: cache + " " + metrics + " " + zap},
	"spf": {
		module:  "internal/adminapi internal/conf internal/fieldtext internal/mailaddr internal/page internal/spfrecord list policy",
		outside: "blitiri.com.ar/go/spf " + cache + " " + metrics + " " + zap,
	},
	"greylist": {module: "internal/adminapi internal/conf internal/mailaddr internal/page list policy", outside: cache + " " + metrics + " " + zap},

	"dmarcreport": {module: "internal/adminapi internal/aggregate internal/conf internal/mailaddr internal/page internal/sendmail", outside: metrics + " " + zap},

	"auth": {module: "internal/adminapi internal/aggregate internal/conf internal/dkimsig internal/dkimverify internal/fieldtext internal/mailaddr internal/page list policy", outside: metrics + " " + zap},

	"dkim": {module: "internal/adminapi internal/conf internal/dkimsig internal/mailaddr internal/page policy", outside: metrics + " " + zap},

	"limit": {module: "internal/adminapi internal/conf internal/meter internal/page internal/sendmail list policy", outside: metrics + " " + zap},

	"known": {module: "internal/adminapi internal/conf internal/mailaddr internal/maillog internal/page policy", outside: metrics + " " + zap},

	"verify": {
		module:  "internal/adminapi internal/conf internal/filestamp internal/mailaddr internal/page policy table verify/callout verify/directory",
		outside: cache + " " + metrics + " " + zap,
	},
	"verify/directory": {module: "internal/conf policy", outside: "github.com/go-ldap/ldap/v3"},
	"verify/callout":   {module: "internal/conf internal/mailaddr policy", outside: metrics + " " + zap + " golang.org/x/time/rate"},
	"provider": {
		module:  "internal/adminapi internal/conf internal/dkimverify internal/filestamp internal/mailaddr internal/page internal/spfrecord policy",
		outside: bart + " " + metrics + " " + zap,
	},
	"headercheck": {
		module:  "internal/adminapi internal/conf internal/filestamp internal/mailaddr internal/page internal/when list policy table",
		outside: "golang.org/x/text/encoding/htmlindex " + metrics + " " + zap,
	},

	// State. The greylist's types are the words of its store.

	"store":         {module: "greylist internal/adminapi internal/conf internal/meter", outside: zap},
	"store/waiting": {module: "greylist"},
	"store/overlay": {module: "greylist internal/meter store store/waiting"},
	"store/mem":     {module: "greylist store store/overlay"},
	"store/bolt":    {module: "greylist internal/meter store store/overlay", outside: "go.etcd.io/bbolt/... " + metrics + " " + zap},
	"store/near":    {module: "greylist internal/meter store", outside: "github.com/maypok86/otter/v2 " + metrics + " " + zap},
	"store/redis":   {module: "greylist internal/conf internal/meter store", outside: "github.com/redis/go-redis/v9/... github.com/sony/gobreaker/v2 " + metrics + " " + zap},

	// From a request to its answer.
	"pipeline": {module: "internal/conf internal/logging internal/reference policy", outside: metrics + " " + zap},
	"policyd":  {module: "dialog internal/conf internal/door internal/listen internal/mailaddr policy", outside: metrics + " " + zap},
	"dialog":   {module: "policy"},
	"expect":   {module: "internal/conf internal/mailaddr policy resolver"},
	"moving":   {},
	"postfix":  {module: "internal/maillog internal/page policy"},
	"replay":   {module: "expect internal/mailaddr internal/maillog journal policy policyd resolver"},
	"milter": {
		module:  "dialog internal/conf internal/door internal/listen internal/mailaddr internal/quickack policy",
		outside: "github.com/d--j/go-milter " + metrics + " " + zap,
	},
	"lookup": {
		module:  "internal/adminapi internal/conf internal/door internal/filestamp internal/listen internal/mailaddr internal/netstring policy table",
		outside: metrics + " " + zap,
	},
	"journal": {module: "internal/adminapi internal/conf internal/mailaddr internal/page internal/reference policy", outside: "github.com/klauspost/compress/zstd " + metrics + " " + zap},
	"admin":   {module: "internal/adminapi internal/conf internal/listen internal/page policy", outside: metrics + " " + zap},
	"console": {module: "internal/adminapi internal/conf internal/filestamp internal/listen internal/page", outside: "golang.org/x/crypto/argon2 golang.org/x/net/netutil " + metrics + " " + zap},
	"config": {
		module: "access admin auth client console dkim dmarcreport docs expect greylist headercheck internal/conf internal/confine internal/listen internal/logging internal/page journal known limit lookup milter names pipeline policy " +
			"policyd provider rbl resolver spf store verify",
		outside: "github.com/pelletier/go-toml/v2/...",
	},
	"app": {
		module: "access admin auth client config console dialog dkim dmarcreport expect greylist headercheck internal/adminapi internal/conf internal/listen internal/mailaddr internal/page internal/reference journal known limit lookup " +
			"milter names pipeline policy policyd postfix provider rbl resolver spf store store/bolt store/mem store/near store/redis verify",
		outside: metrics + " " + zap,
	},
	"cmd/postern": {
		module: "access admin app auth client config console dkim dmarcreport greylist headercheck internal/adminapi internal/aggregate internal/conf internal/confine internal/fdstore internal/listen internal/logging internal/mailaddr " +
			"internal/reference internal/when journal known limit list lookup moving pipeline policy postfix provider rbl replay resolver spf store store/bolt verify",
		outside: metrics + " github.com/coreos/go-systemd/v22/daemon github.com/cpuguy83/go-md2man/v2/md2man github.com/prometheus/client_model/go github.com/prometheus/common/expfmt github.com/prometheus/common/model github.com/spf13/cobra github.com/spf13/pflag golang.org/x/term " + zap,
	},

	// Peers for tests; nothing that is shipped imports them.
	"internal/admintest":    {testing: true, module: "internal/adminapi"},
	"internal/dnstest":      {testing: true, outside: dns},
	"internal/policytest":   {testing: true},
	"internal/proctest":     {testing: true},
	"internal/systemdtest":  {testing: true},
	"internal/redistest":    {testing: true, module: "internal/proctest"},
	"internal/smtptest":     {testing: true, module: "internal/certtest"},
	"internal/certtest":     {testing: true},
	"internal/netns":        {testing: true},
	"internal/postfixtest":  {testing: true, module: "internal/proctest"},
	"internal/ldaptest":     {testing: true, module: "internal/certtest internal/proctest"},
	"store/storetest":       {testing: true, module: "greylist internal/meter store", outside: "pgregory.net/rapid"},
	"internal/postgreytest": {testing: true, module: "internal/policytest"},

	// The reference of the configuration, as text.
	"docs": {},

	// The example of docs/new-check.md, which nothing imports.
	"docs/tutorial/tld": {module: "internal/adminapi internal/conf policy"},

	// Tests only.
	"bench":               {testing: true, outside: "github.com/d--j/go-milter"}, // the milter that does nothing
	"bench/sim":           {testing: true, module: "greylist internal/conf names policy store/mem", outside: metrics + " " + zap},
	"chaos":               {testing: true},
	"configs":             {testing: true},
	"integration":         {testing: true},
	"integration/console": {testing: true}, // with a browser
	"internal/archtest":   {testing: true},
	"systemd":             {testing: true},
}

// Libraries that more than one package uses. "/..." stands for the package
// and all below it.
const (
	bart    = "github.com/gaissmai/bart"
	cache   = "github.com/maypok86/otter/v2/..."
	dns     = "github.com/miekg/dns"
	metrics = "github.com/prometheus/client_golang/..."
	zap     = "go.uber.org/zap/..."
)

// rule is what a package may import besides the standard library.
type rule struct {
	module  string // packages of this module
	outside string // packages of others
	testing bool   // only tests may import it
}

func (r rule) allows(imported string) bool {
	if own, ok := strings.CutPrefix(imported, module+"/"); ok {
		return slices.Contains(strings.Fields(r.module), own)
	}
	return slices.ContainsFunc(strings.Fields(r.outside), func(pattern string) bool {
		tree, ok := strings.CutSuffix(pattern, "/...")
		return imported == pattern || ok && (imported == tree || strings.HasPrefix(imported, tree+"/"))
	})
}

// tests may use what the shipped packages may, and these.
var testLibraries = rule{outside: "github.com/google/go-cmp/... github.com/rogpeppe/go-internal/... go.uber.org/goleak pgregory.net/rapid " +
	"github.com/pelletier/go-toml/v2 blitiri.com.ar/go/spf github.com/d--j/go-milter github.com/emersion/go-msgauth/dkim gopkg.in/yaml.v3 github.com/chromedp/cdproto/... github.com/chromedp/chromedp/... " + dns + " " + metrics + " " + zap}

type pkg struct {
	ImportPath, Dir                    string
	GoFiles                            []string
	Imports, TestImports, XTestImports []string
}

// importing returns the files, without tests, that import a package.
func (p *pkg) importing(t *testing.T, path string) (files []string) {
	t.Helper()
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == strconv.Quote(path) }) {
			files = append(files, name)
		}
	}
	return files
}

func (p *pkg) name() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// list returns the packages of the module, those that do not compile too.
func list(t *testing.T) []pkg {
	t.Helper()
	// go test keeps the result until a file changes that the test has looked
	// at, and does not see what go list looks at.
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".go" {
			return err
		}
		_, err = os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // an editor's file that is gone already
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("only %d packages were found", len(all))
	}
	return all
}

func standard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return first != module && !strings.Contains(first, ".")
}

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		r, ok := allowed[p.name()]
		if !ok {
			t.Errorf("%s is not in the table: say what it may import", p.name())
			continue
		}
		for _, imported := range p.Imports {
			if standard(imported) {
				if imported == "testing" && !r.testing {
					t.Errorf("%s imports testing, and is shipped", p.name())
				}
				continue
			}
			if !r.allows(imported) {
				t.Errorf("%s must not import %s", p.name(), imported)
			}
			if of := allowed[strings.TrimPrefix(imported, module+"/")]; of.testing && !r.testing {
				t.Errorf("%s imports %s, which is for tests", p.name(), imported)
			}
		}
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			if standard(imported) || strings.HasPrefix(imported, module+"/") || r.allows(imported) || testLibraries.allows(imported) {
				continue
			}
			t.Errorf("the tests of %s must not import %s", p.name(), imported)
		}
	}
}

// An import cycle through tests, or a check that tests itself with another
// check, ties together what should be apart. Real stores are fine.
func TestImportsOfTests(t *testing.T) {
	packages := list(t)
	checks := checksOf(t, packages)
	for _, p := range packages {
		if !slices.Contains(checks, p.name()) {
			continue
		}
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			own, ok := strings.CutPrefix(imported, module+"/")
			if ok && own != p.name() && (slices.Contains(checks, own) || own == "config" || own == "app") {
				t.Errorf("the tests of %s must not import %s", p.name(), own)
			}
		}
	}
}

// checksOf returns the packages of the checks: those whose sections the
// configuration has.
func checksOf(t *testing.T, packages []pkg) []string {
	t.Helper()
	i := slices.IndexFunc(packages, func(p pkg) bool { return p.name() == "config" })
	if i < 0 {
		t.Fatal("there is no package config")
	}
	common := []string{"internal/conf", "pipeline", "policy"} // words that it needs to say so
	var checks []string
	for _, imported := range packages[i].Imports {
		name, ok := strings.CutPrefix(imported, module+"/")
		if ok && slices.Contains(packages[i].importing(t, imported), "checks.go") && !slices.Contains(common, name) {
			checks = append(checks, name)
		}
	}
	if len(checks) < 7 {
		t.Fatalf("config/checks.go has the sections of %v", checks)
	}
	return checks
}

// A check is a unit: outside its own folder it is imported by one file of
// config, one of app and, if it has commands, one of the command line. The
// store speaks the greylist's words.
func TestACheckIsAUnit(t *testing.T) {
	packages := list(t)
	for _, check := range checksOf(t, packages) {
		for _, p := range packages {
			if p.name() == check || strings.HasPrefix(p.name(), check+"/") || strings.HasPrefix(p.name(), "store") && check == "greylist" {
				continue
			}
			files := p.importing(t, module+"/"+check)
			switch p.name() {
			case "config", "app":
				if !slices.Equal(files, []string{"checks.go"}) {
					t.Errorf("the check %s is imported by %v of %s, want checks.go", check, files, p.name())
				}
			case "cmd/postern":
				if len(files) > 1 {
					t.Errorf("the commands of %s are in %v, want one file", check, files)
				}
			case "bench/sim": // shows the greylist a simulated world
				if len(files) > 0 && !slices.Equal(files, []string{"postern.go"}) {
					t.Errorf("%s is imported by %v of %s, want postern.go", check, files, p.name())
				}
			default:
				if len(files) > 0 {
					t.Errorf("%s imports the check %s: %v", p.name(), check, files)
				}
			}
		}
	}
}

// The table itself keeps to the directions that docs/architecture.md draws.
func TestTable(t *testing.T) {
	below := map[string]int{}
	var depth func(name string, path []string) int
	depth = func(name string, path []string) int {
		if slices.Contains(path, name) {
			t.Fatalf("%s leads back to itself: %v", name, path)
		}
		if d, ok := below[name]; ok {
			return d
		}
		d := 0
		for imported := range strings.FieldsSeq(allowed[name].module) {
			if _, ok := allowed[imported]; !ok {
				t.Errorf("%s may import %s, which is not in the table", name, imported)
			}
			d = max(d, depth(imported, append(path, name))+1)
		}
		below[name] = d
		return d
	}
	for name, r := range allowed {
		depth(name, nil)
		if !slices.IsSorted(strings.Fields(r.module)) {
			t.Errorf("the imports of %s are not sorted", name)
		}
	}
	checks := checksOf(t, list(t))
	for _, check := range checks {
		for imported := range strings.FieldsSeq(allowed[check].module) {
			if slices.Contains(checks, imported) || slices.Contains([]string{"admin", "config", "pipeline", "policyd", "milter", "lookup", "app", "resolver"}, imported) ||
				strings.HasPrefix(imported, "store") {
				t.Errorf("the check %s may import %s", check, imported)
			}
		}
	}
	for _, one := range []string{
		"go.etcd.io/bbolt", "github.com/redis/go-redis/v9", "github.com/miekg/dns", "github.com/spf13/cobra",
		"github.com/pelletier/go-toml/v2", "github.com/sony/gobreaker/v2", "github.com/dlclark/regexp2/v2", "github.com/d--j/go-milter",
	} {
		var users []string
		for name, r := range allowed {
			if r.allows(one) && !r.testing {
				users = append(users, name)
			}
		}
		if len(users) != 1 {
			t.Errorf("%s is imported in %v, want one place", one, users)
		}
	}
}
