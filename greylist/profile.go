package greylist

// Profiles: values of Config.Profile.
const (
	Strict   = "strict"
	Balanced = "balanced"
	Gentle   = "gentle"
)

// DefaultProfile is the one of a file that names none.
const DefaultProfile = Balanced

// profileKeys are the keys that a profile sets.
type profileKeys struct {
	when       string
	suspicions []string
}

// profiles are what each sets.
var profiles = map[string]profileKeys{
	Strict:   {Always, kindNames[:]},
	Balanced: {Graded, kindNames[:]},
	Gentle:   {Suspicious, []string{kindNames[kindName], kindNames[kindHelo], kindNames[kindSender], kindNames[kindList]}},
}

// Fill sets the keys that belong to the profile, and long_delay by delay and
// max_delay, except those that the file gives: given tells of each by its name.
func (c *Config) Fill(given func(key string) bool) {
	p, ok := profiles[c.Profile]
	if !ok {
		return // Validate says so
	}
	if !given("when") {
		c.When = p.when
	}
	if !given("long_delay") {
		c.LongDelay = max(c.Delay, min(c.LongDelay, c.MaxDelay))
	}
	if !given("suspicions") {
		c.Suspicions = append([]string(nil), p.suspicions...)
	}
}

// ProfileConfig returns the defaults with a profile.
func ProfileConfig(profile string) Config {
	c := DefaultConfig()
	c.Profile = profile
	c.Fill(func(string) bool { return false })
	return c
}
