package lookup

import (
	"bytes"

	"postern/internal/netstring"
)

// parseRequest splits the content of a request: the name of the map, one
// space, and the key, which may hold spaces.
func parseRequest(content []byte) (name, key []byte, ok bool) {
	i := bytes.IndexByte(content, ' ')
	if i <= 0 {
		return nil, nil, false
	}
	return content[:i], content[i+1:], true
}

// maxReply is the most bytes of a reply that Postfix takes (DICT_SOCKMAP_MAX_REPLY,
// since 3.10 socketmap_max_reply_size). It cannot find its way back after a
// longer one.
const maxReply = 100_000

// maxValue is the longest value that fits into a reply.
const maxValue = maxReply - len(wordOK)

// The words that replies begin with. All have a space behind them: Postfix
// before 3.10 takes "OK" without one as "not found".
const (
	wordOK       = "OK "
	wordNotFound = "NOTFOUND "
	wordTemp     = "TEMP "
	wordTimeout  = "TIMEOUT "
	wordPerm     = "PERM "
)

func appendReply(dst []byte, word, text string) []byte {
	dst = netstring.AppendLength(dst, len(word)+len(text))
	dst = append(dst, word...)
	dst = append(dst, text...)
	return append(dst, ',')
}
