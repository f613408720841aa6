package image

import (
	"net/http"
	"strings"
	"time"
)

// ServeHTTP answers GET and HEAD of /<hex> with that pack or manifest, whole or
// by Range. Only blobs that an image refers to are there. It must be given the
// server's own ResponseWriter: with the *os.File below it the kernel sends the
// bytes (sendfile), and any wrapper costs twice the CPU.
func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	s.mu.RLock()
	b, ok := s.blobs[name]
	s.mu.RUnlock()
	if !ok {
		http.Error(w, "no such blob", http.StatusNotFound)
		return
	}
	f, err := s.root.Open("blobs/" + name)
	if err != nil {
		s.log.Error("cannot open a blob", "image", b.image, "file", s.blobPath(name), "err", err)
		http.Error(w, "blob cannot be opened", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", b.mimeType)
	h.Set("ETag", `"`+name+`"`)
	h.Set("Cache-Control", "public, max-age=31536000, immutable") // the name is the content
	http.ServeContent(w, r, "", time.Time{}, f)
}
