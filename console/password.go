package console

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// The cost of a hash: RFC 9106, section 4, its second choice.
const (
	argonTime    = 3
	argonMemory  = 64 << 10 // KiB
	argonThreads = 4
	argonKey     = 32
	argonSalt    = 16
)

// What the cost of a hash in the file may be: a password is tried by whoever
// asks.
const (
	maxArgonTime   = 10
	maxArgonMemory = 256 << 10 // KiB
)

// Lengths of passwords in bytes.
const (
	minPassword = 10
	maxPassword = 256
)

// CheckPassword reports what keeps a text from being a password.
func CheckPassword(name, password string) error {
	switch {
	case len(password) < minPassword:
		return fmt.Errorf("a password has at least %d characters", minPassword)
	case len(password) > maxPassword:
		return fmt.Errorf("a password has at most %d bytes", maxPassword)
	case strings.EqualFold(password, name):
		return errors.New("the name is no password")
	}
	return nil
}

// hash is an argon2id hash.
type hash struct {
	time, memory uint32
	threads      uint8
	salt, key    []byte
}

// Hash returns the hash of a password, in the form of the PHC string format.
func Hash(password string) string {
	h := hash{time: argonTime, memory: argonMemory, threads: argonThreads, salt: make([]byte, argonSalt)}
	_, _ = rand.Read(h.salt) // it never fails
	h.key = argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, argonKey)
	return h.String()
}

func (h *hash) String() string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.time, h.threads, b64.EncodeToString(h.salt), b64.EncodeToString(h.key))
}

var errHash = errors.New("it is no hash of argon2id; `postern console user password` makes one")

func parseHash(text string) (h hash, err error) {
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return h, errHash
	}
	var rest string
	if n, _ := fmt.Sscanf(parts[3]+" .", "m=%d,t=%d,p=%d %s", &h.memory, &h.time, &h.threads, &rest); n != 4 || rest != "." {
		return h, errHash
	}
	if h.time < 1 || h.time > maxArgonTime || h.threads < 1 || h.memory < 8*uint32(h.threads) || h.memory > maxArgonMemory {
		return h, fmt.Errorf("the cost %q of the hash is out of range", parts[3])
	}
	if h.salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil || len(h.salt) < 8 || len(h.salt) > 64 {
		return h, errHash
	}
	if h.key, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(h.key) < 16 || len(h.key) > 64 {
		return h, errHash
	}
	return h, nil
}

// is reports whether h is the hash of a password.
func (h *hash) is(password string) bool {
	return subtle.ConstantTimeCompare(keyOf(h, password), h.key) == 1
}

// keyOf is the key of a password with the cost and the salt of h.
func keyOf(h *hash, password string) []byte {
	return argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(len(h.key))) //nolint:gosec // at most 64
}

// nobody is the hash that a password is compared with when there is no such
// user, so that an answer takes as long.
var nobody = hash{time: argonTime, memory: argonMemory, threads: argonThreads, salt: make([]byte, argonSalt), key: make([]byte, argonKey)}

// Generate returns a password that nobody has to think of.
func Generate() string { return rand.Text() }
