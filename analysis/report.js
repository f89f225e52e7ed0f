// Boxes that switch the curves of an arm on and off. Without a script all curves are shown, and no box.
for (const boxes of document.querySelectorAll("fieldset.arms")) {
  boxes.hidden = false;
  boxes.addEventListener("change", ({target}) => {
    for (const part of boxes.parentElement.querySelectorAll(`svg .arm-${target.value}`)) {
      part.style.display = target.checked ? "" : "none";
    }
  });
}
// What is folded on the screen is printed.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
