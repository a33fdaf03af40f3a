package logging

import (
	"path/filepath"
	"strings"

	"go.uber.org/zap/zapcore"

	"postern/internal/conf"
)

// Config is the [log] section.
type Config struct {
	// Level is the least severe level that is written: "debug", "info", "warn"
	// or "error". Decisions are "info". Default "info".
	Level string `toml:"level"`
	// Format is "json", "console" (for people), or "auto": console on a
	// terminal, else JSON. Default "auto".
	Format string `toml:"format"`
	// Output is "stderr" (with journald's priorities when systemd runs the
	// daemon), "syslog" (facility mail) or "file:/path". A file that was moved
	// away is made anew within a second. Default "stderr".
	Output string `toml:"output"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Level: "info", Format: "auto", Output: "stderr"} }

// Validate reports what is wrong; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if _, err := c.level(); err != nil {
		fs.Keyf(prefix+".level", "unknown level %q (one of debug, info, warn, error)", c.Level)
	}
	switch c.Format {
	case "auto", "json", "console":
	default:
		fs.Keyf(prefix+".format", "unknown format %q (one of auto, json, console)", c.Format)
	}
	switch path, isFile := strings.CutPrefix(c.Output, "file:"); {
	case isFile && !filepath.IsAbs(path):
		fs.Keyf(prefix+".output", "%q is not an absolute path", path)
	case !isFile && c.Output != "stderr" && c.Output != "syslog":
		fs.Keyf(prefix+".output", "unknown output %q (one of stderr, syslog, file:/path)", c.Output)
	}
}

func (c *Config) level() (zapcore.Level, error) {
	switch c.Level {
	case "debug", "info", "warn", "error":
		return zapcore.ParseLevel(c.Level)
	}
	return 0, errUnknownLevel
}
