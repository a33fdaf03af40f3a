package console

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"postern/internal/conf"
	"postern/internal/filestamp"
	"postern/internal/page"
)

// User is who may log in.
type User struct {
	Name string    `json:"name"`
	Role page.Role `json:"role"`
	// Password is its hash, see [Hash].
	Password string `json:"-"`
	// TOTP is the secret of the one-time passwords that are asked for, too, in
	// base32; "" asks for none.
	TOTP string `json:"-"`

	hash   hash
	secret []byte
}

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._@-]{0,63}$`)

// CheckName reports what keeps a text from being a user's name.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%q is no user name: letters, digits and . _ @ - inside, at most 64", name)
	}
	return nil
}

const (
	maxUsersFile = 1 << 20
	usersHead    = "# Who may log in to postern's console: name:role:hash of the password[:secret of one-time passwords].\n" +
		"# `postern console user` writes this file.\n"
)

// ParseUsers reads the text of a users file. The error is a [conf.Faults] with
// everything that is wrong.
func ParseUsers(file string, text []byte) ([]User, error) {
	var fs conf.Faults
	var out []User
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxUsersFile)
	n := 0
	for lines.Scan() {
		n++
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		u, err := parseUser(line)
		if err == nil && slices.ContainsFunc(out, func(o User) bool { return o.Name == u.Name }) {
			err = fmt.Errorf("%s stands here a second time", u.Name)
		}
		if err != nil {
			fs.Filef(file, n, 1, "%v", err)
			continue
		}
		out = append(out, u)
	}
	if err := lines.Err(); err != nil {
		fs.Filef(file, n+1, 1, "%v", err)
	}
	return out, fs.Err()
}

func parseUser(line string) (u User, err error) {
	parts := strings.Split(line, ":")
	if len(parts) < 3 || len(parts) > 4 {
		return u, errors.New("a line is name:role:hash[:secret]")
	}
	u = User{Name: parts[0], Password: parts[2]}
	if err := CheckName(u.Name); err != nil {
		return u, err
	}
	if err := u.Role.UnmarshalText([]byte(parts[1])); err != nil {
		return u, err
	}
	if u.hash, err = parseHash(u.Password); err != nil {
		return u, err
	}
	if len(parts) == 4 && parts[3] != "" {
		u.TOTP = parts[3]
		u.secret, err = parseTOTP(u.TOTP)
	}
	return u, err
}

// ReadUsers reads a users file. One that is not there is empty.
func ReadUsers(path string) ([]User, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("console: %w", err)
	case !st.Mode().IsRegular() || st.Size() > maxUsersFile:
		return nil, fmt.Errorf("console: %s is no file of users", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	return ParseUsers(path, text)
}

// ChangeUsers has change make a new list out of that in a users file, and writes
// it. The file is replaced as a whole, and keeps its owner and mode; a new one
// belongs to the owner of its directory, who alone can read it. Two that change
// it at once wait for each other.
func ChangeUsers(path string, change func([]User) ([]User, error)) error {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	defer lock.Close() //nolint:errcheck // only a lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("console: %s: %w", lock.Name(), err)
	}
	if err := own(lock, filepath.Dir(path)); err != nil {
		return err
	}
	users, err := ReadUsers(path)
	if err != nil {
		return err
	}
	if users, err = change(users); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString(usersHead)
	for _, u := range users {
		fmt.Fprintf(&text, "%s:%s:%s", u.Name, u.Role, u.Password)
		if u.TOTP != "" {
			text.WriteString(":" + u.TOTP)
		}
		text.WriteByte('\n')
	}
	if _, err := ParseUsers(path, []byte(text.String())); err != nil {
		return err // such a file would lock everybody out
	}
	return replace(path, text.String())
}

func replace(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it has its name by then
	_, err = f.WriteString(text)
	if err == nil {
		if old, statErr := os.Stat(path); statErr == nil {
			err = errors.Join(f.Chmod(old.Mode().Perm()), own(f, path))
		} else {
			err = own(f, filepath.Dir(path))
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	return nil
}

// own gives f the owner of what is at path. Only root can, and needs to.
func own(f *os.File, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	if of, ok := st.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return f.Chown(int(of.Uid), int(of.Gid))
	}
	return nil
}

// users are those of a file that is read again when it changes.
type users struct {
	path string

	mu     sync.Mutex
	looked time.Time
	stamp  filestamp.Stamp
	read   bool
	byName map[string]*User
	err    error
}

// lookUsers is how often the file is looked at.
const lookUsers = time.Second

// get returns the users by their names. While the file has faults nobody can log
// in or stay: who may is not known.
func (u *users) get() (map[string]*User, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if u.read && now.Sub(u.looked) < lookUsers {
		return u.byName, u.err
	}
	u.looked = now
	stamp := filestamp.Of(u.path)
	if u.read && u.err == nil && u.stamp.Same(stamp) {
		return u.byName, nil
	}
	all, err := ReadUsers(u.path)
	u.read, u.stamp, u.err, u.byName = true, stamp, err, nil
	if err == nil {
		u.byName = make(map[string]*User, len(all))
		for i := range all {
			u.byName[all[i].Name] = &all[i]
		}
	}
	return u.byName, u.err
}
