package function

import (
	"net/http"
	"time"
)

// SetClock gives the identity check of h, made by NewHandler, another clock.
func SetClock(h http.Handler, now func() time.Time) {
	v := h.(*httpHandler).verifier
	v.now, v.keys.now = now, now
}
