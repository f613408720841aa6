package ipxe

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"recast/inventory"
)

// Transfer lets serve answer a request for a boot file and says what went over
// the connection: bytes of how many, from where, and whether it broke off.
func Transfer(w http.ResponseWriter, r *http.Request, name string, serve http.HandlerFunc) inventory.Observation {
	c := &counted{ResponseWriter: w, status: http.StatusOK}
	start := time.Now()
	serve(c, r)
	o := inventory.Observation{Kind: inventory.SawFile, Remote: remoteAddr(r), Detail: name, Asked: r.Method == http.MethodHead}
	length, _ := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	o.Size = length
	if c.status >= 300 {
		if c.status == http.StatusNotModified {
			o.Asked = true
			return o
		}
		o.Error, o.Size = fmt.Sprintf("answered %d %s", c.status, http.StatusText(c.status)), 0
		return o
	}
	if c.status == http.StatusPartialContent {
		// bytes 5-9/20; several ranges in one answer have none, and no client of ours asks for them.
		if _, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &o.Offset, new(int64), &o.Size); err != nil {
			o.Offset, o.Size = 0, 0
		}
	}
	if o.Asked {
		return o
	}
	o.Bytes, o.Took = c.n, inventory.Duration(time.Since(start))
	if c.n < length {
		o.Error = "the machine broke it off"
	}
	return o
}

// counted counts the bytes of an answer and leaves sendfile its way.
type counted struct {
	http.ResponseWriter
	status int
	n      int64
}

func (c *counted) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *counted) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.n += n
	return n, err
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// version is what iPXE says of itself: "1.0.0+git-20190125" of the User-Agent
// "iPXE/1.0.0+git-20190125.36a4c85-5.1".
func version(r *http.Request) string {
	v, ok := strings.CutPrefix(r.UserAgent(), "iPXE/")
	if !ok || len(v) > 64 || strings.ContainsFunc(v, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return ""
	}
	return v
}
