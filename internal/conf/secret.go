package conf

import (
	"os"
	"path/filepath"
	"strings"
)

// SecretPath returns where the file of a secret is: a name without directory is
// one of systemd's credentials (systemd.exec(5)), where there are some.
func SecretPath(name string) string {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && !strings.Contains(name, "/") {
		return filepath.Join(dir, name)
	}
	return name
}
