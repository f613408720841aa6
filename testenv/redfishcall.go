package testenv

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"recast/inventory"
)

// redfishCall is one request on its way.
type redfishCall struct {
	b       *RedfishBMC
	w       http.ResponseWriter
	r       *http.Request
	path    string
	faults  BMCFaults
	account *redfishAccount // who asks; nil without login
	session string          // its id; "" for basic authentication
}

// redfishResource is what stands at a path. A method that is nil is not allowed.
type redfishResource struct {
	get                 func() map[string]any
	patch, post, remove func(*redfishCall)
	serve               func(*redfishCall) // GET of what is no resource
	// action: post changes something else than a collection.
	action bool
	// Without login: reading it, and posting to it (that is the login).
	public, publicPost bool
	// admin: changes need the privilege ConfigureUsers or ConfigureManager; else
	// ConfigureComponents.
	admin bool
	// own: the account that may change it whatever its role, by name.
	own string
}

const redfishBodyMost = 64 << 10

// serve is one request: faults, login, then the resource.
func (b *RedfishBMC) serve(w http.ResponseWriter, r *http.Request) {
	c := &redfishCall{b: b, w: w, r: r, path: strings.TrimSuffix(r.URL.Path, "/"), faults: b.now()}
	if c.faults.Hang {
		b.record("read", r.Method+" "+c.path+": not answered", false)
		select {
		case <-r.Context().Done():
		case <-b.closed:
		}
		return
	}
	if !b.wait(c.faults.Delay) {
		return
	}
	w.Header().Set("OData-Version", "4.0")
	w.Header().Set("Cache-Control", "no-cache")
	r.Body = http.MaxBytesReader(w, r.Body, redfishBodyMost)
	if most := c.faults.Redfish.Workers; most > 0 {
		defer b.workers.Add(-1)
		if int(b.workers.Add(1)) > most {
			c.log(": no worker")
			c.unavailable(5)
			return
		}
	}
	if c.redirected() {
		return
	}
	resource := b.find(c.path)
	if !resource.isPublic(r.Method) {
		if !c.authorised() {
			return
		}
		if c.faults.Busy {
			c.log(": busy")
			c.unavailable(5)
			return
		}
	}
	if v := r.Header.Get("OData-Version"); v != "" && v != "4.0" {
		c.log(": refused")
		c.fail(http.StatusPreconditionFailed, "HeaderInvalid", "OData-Version")
		return
	}
	if resource == nil {
		c.log("")
		c.missing()
		return
	}
	c.dispatch(resource)
}

// dispatch runs the method on the resource.
func (c *redfishCall) dispatch(resource *redfishResource) {
	switch c.r.Method {
	case http.MethodGet, http.MethodHead:
		c.w.Header().Set("Allow", resource.allow())
		switch {
		case resource.serve != nil:
			c.log("")
			resource.serve(c)
			return
		case resource.get != nil:
			c.log("")
			body, ok := c.page(resource.get())
			if !ok {
				c.fail(http.StatusNotImplemented, "QueryNotSupported")
				return
			}
			c.reply(http.StatusOK, body)
			return
		}
	case http.MethodPatch:
		if resource.patch != nil {
			if c.allowed(resource) && c.matches(resource) {
				resource.patch(c)
			}
			return
		}
	case http.MethodPost:
		if resource.post != nil {
			if !resource.publicPost && !c.allowed(resource) {
				return
			}
			if c.faults.Redfish.RefuseIfMatchPost && resource.action && len(c.r.Header["If-Match"]) > 0 {
				c.log(": refused")
				c.fail(http.StatusPreconditionFailed, "PreconditionFailed")
				return
			}
			resource.post(c)
			return
		}
	case http.MethodDelete:
		if resource.remove != nil {
			if c.allowed(resource) {
				resource.remove(c)
			}
			return
		}
	}
	c.log(": refused")
	c.w.Header().Set("Allow", resource.allow())
	c.fail(http.StatusMethodNotAllowed, "OperationNotAllowed")
}

// page is the part of a collection that was asked for by a link of ours; no other
// query is known (false).
func (c *redfishCall) page(body map[string]any) (map[string]any, bool) {
	members, isCollection := body["Members"].([]any)
	size, from := c.faults.Redfish.Page, 0
	for name, values := range c.r.URL.Query() {
		if !strings.HasPrefix(name, "$") {
			continue // DSP0266, 7.3.1: to be ignored
		}
		n, err := strconv.Atoi(values[0])
		if name != "$skip" || size == 0 || !isCollection || err != nil || n < 0 || n > len(members) {
			return nil, false
		}
		from = n
	}
	if size == 0 || !isCollection {
		return body, true
	}
	if end := from + size; end < len(members) {
		members = members[:end]
		body["Members@odata.nextLink"] = c.path + "?$skip=" + strconv.Itoa(end)
	}
	body["Members"] = members[from:]
	return body, true
}

func (r *redfishResource) isPublic(method string) bool {
	switch {
	case r == nil:
		return false
	case method == http.MethodPost:
		return r.publicPost
	}
	return r.public && (method == http.MethodGet || method == http.MethodHead)
}

func (r *redfishResource) allow() string {
	var methods []string
	if r.get != nil || r.serve != nil {
		methods = append(methods, http.MethodGet, http.MethodHead)
	}
	if r.patch != nil {
		methods = append(methods, http.MethodPatch)
	}
	if r.post != nil {
		methods = append(methods, http.MethodPost)
	}
	if r.remove != nil {
		methods = append(methods, http.MethodDelete)
	}
	return strings.Join(methods, ", ")
}

// redirected sends the client elsewhere, as web servers in front of BMCs do.
func (c *redfishCall) redirected() bool {
	faults, to := c.faults.Redfish, ""
	switch {
	case faults.RedirectTo != "" && c.path != redfishRoot && c.path != "/redfish":
		to = "https://" + faults.RedirectTo + c.r.URL.Path
	case faults.RedirectSlash && !strings.HasSuffix(c.r.URL.Path, "/"):
		to = c.r.URL.Path + "/"
	default:
		return false
	}
	c.log(": redirected")
	c.w.Header().Set("Location", to)
	c.w.WriteHeader(http.StatusPermanentRedirect)
	return true
}

// log records a request that changes nothing.
func (c *redfishCall) log(what string) { c.b.record("read", c.r.Method+" "+c.path+what, false) }

// read decodes the body; false: the answer was sent.
func (c *redfishCall) read(v any) bool {
	decoder := json.NewDecoder(c.r.Body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(v)
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return true
	case errors.As(err, &kind):
		c.refuse(http.StatusBadRequest, "PropertyValueFormatError", kind.Value, kind.Field)
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		name, _ := strconv.Unquote(strings.TrimPrefix(err.Error(), "json: unknown field "))
		c.refuse(http.StatusBadRequest, "PropertyUnknown", name)
	default:
		c.refuse(http.StatusBadRequest, "MalformedJSON")
	}
	return false
}

// refuse is fail for a change that was not made.
func (c *redfishCall) refuse(status int, message string, args ...string) {
	c.log(": refused")
	c.fail(status, message, args...)
}

// matches judges If-Match. It reads the resource again, so that what changed by
// itself counts.
func (c *redfishCall) matches(resource *redfishResource) bool {
	faults := c.faults.Redfish
	match, sent := c.r.Header["If-Match"]
	switch {
	case !sent && c.faults.NeedETag:
		status := faults.ETagStatus
		if status == 0 {
			status = http.StatusPreconditionRequired
		}
		c.refuse(status, "PreconditionRequired")
		return false
	case !sent || faults.ETag == ETagNone || match[0] == "*":
		return true
	}
	strong := redfishETag(resource.get())
	ok := match[0] == strong
	if faults.ETag == ETagWeak {
		ok = ok || match[0] == "W/"+strong
	}
	if faults.ETag == ETagEmpty || !ok {
		c.refuse(http.StatusPreconditionFailed, "PreconditionFailed")
		return false
	}
	return true
}

// redfishETag is strong and follows the content.
func redfishETag(resource map[string]any) string {
	body, _ := json.Marshal(resource)
	return `"` + inventory.DigestOf(body).Short() + `"`
}

// reply sends a resource with its version.
func (c *redfishCall) reply(status int, body map[string]any) {
	faults := c.faults.Redfish
	etag := redfishETag(body)
	for _, hole := range faults.Holes {
		body = redfishWithout(body, hole).(map[string]any)
	}
	if faults.NumbersAsText {
		body = redfishAsText(body).(map[string]any)
	}
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err) // only maps, words and numbers are in it
	}
	compress := faults.Gzip != GzipNever && strings.Contains(c.r.Header.Get("Accept-Encoding"), "gzip")
	if faults.Gzip == GzipDemand && !compress && strings.HasPrefix(c.path, redfishRoot+"/Registries") {
		// HPE iLO 5 keeps its registries compressed and has no room to unpack them.
		c.fail(http.StatusNotAcceptable, "HeaderInvalid", "Accept-Encoding")
		return
	}
	if c.r.Method == http.MethodGet || c.r.Method == http.MethodHead {
		if compress {
			etag = strings.TrimSuffix(etag, `"`) + `-gzip"` // as Apache does
		}
		switch faults.ETag {
		case ETagWeak, ETagWeakFalse:
			etag = "W/" + etag
		case ETagEmpty:
			etag = ""
		}
		if faults.ETag != ETagNone {
			c.w.Header()["Etag"] = []string{etag}
		}
		if etag != "" && c.r.Header.Get("If-None-Match") == etag {
			c.w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	if compress {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(raw)
		_ = z.Close() // a buffer takes everything
		raw = packed.Bytes()
		c.w.Header().Set("Content-Encoding", "gzip")
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	c.w.WriteHeader(status)
	if c.r.Method != http.MethodHead {
		_, _ = c.w.Write(raw)
	}
}

// redfishWithout leaves a property out, however deep it stands.
func redfishWithout(v any, name string) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, x := range v {
			if k != name {
				out[k] = redfishWithout(x, name)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = redfishWithout(x, name)
		}
		return out
	}
	return v
}

func redfishAsText(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, x := range v {
			out[k] = redfishAsText(x)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = redfishAsText(x)
		}
		return out
	case int:
		return strconv.Itoa(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return v
}

// fail is an error answer of the Base registry.
func (c *redfishCall) fail(status int, message string, args ...string) {
	m := redfishMessage(message, args...)
	if own := c.b.options.BaseRegistry; own != "" {
		m["MessageId"] = strings.Replace(m["MessageId"].(string), redfishRegistries["Base"]+".", own+".", 1)
	}
	redfishError(c.w, status, m)
}

func (c *redfishCall) missing() {
	c.fail(http.StatusNotFound, "ResourceMissingAtURI", c.path)
}

func (c *redfishCall) unavailable(seconds int) {
	c.w.Header().Set("Retry-After", strconv.Itoa(seconds))
	c.fail(http.StatusServiceUnavailable, "ServiceTemporarilyUnavailable", strconv.Itoa(seconds))
}

// broken is an error inside of the BMC.
func (c *redfishCall) broken(err error) {
	m := redfishMessage("InternalError")
	m["Message"] = err.Error()
	redfishError(c.w, http.StatusInternalServerError, m)
}

func redfishError(w http.ResponseWriter, status int, message map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": message["MessageId"], "message": message["Message"], "@Message.ExtendedInfo": []any{message},
	}})
}
