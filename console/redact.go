package console

import "bytes"

// secretWords stand before a secret wherever machines print one: kernel arguments
// hold claim nonces, cloud-init prints passwords.
var secretWords = []string{"nonce", "discover", "token", "password", "passwd", "secret", "key", "authorization"}

// redactor overwrites what stands behind a word and = or : until the next space, or
// the line's end where a scheme comes first (RFC 9110, 11.6.2). It keeps nothing back, so that what is typed is seen at once, and lengths stay.
type redactor struct {
	tail   []byte // of what was said, in lower case
	hiding bool
	begun  bool // a character of it was hidden
	line   bool // to the end of the line
}

const longestWord = len("authorization=")

func (r *redactor) redact(text []byte) {
	for i, c := range text {
		if r.hiding {
			switch {
			case c == ' ' && !r.begun && !bytes.HasSuffix(r.tail, []byte(" ")):
				r.tail = append(r.tail[:0], c) // one may stand between
				continue
			case c == ' ' && r.line:
				continue
			case c <= ' ' || c == '&' || c == 0x7f:
				r.hiding = false
			default:
				r.begun = true
				text[i] = '*'
				continue
			}
		}
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if len(r.tail) == longestWord {
			copy(r.tail, r.tail[1:])
			r.tail = r.tail[:longestWord-1]
		}
		r.tail = append(r.tail, c)
		if c != '=' && c != ':' {
			continue
		}
		for _, word := range secretWords {
			if bytes.HasSuffix(r.tail[:len(r.tail)-1], []byte(word)) {
				r.hiding, r.begun, r.line = true, false, word == "authorization"
				break
			}
		}
	}
}
