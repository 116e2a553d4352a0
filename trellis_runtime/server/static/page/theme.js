// Before the first paint: the theme that was chosen, so that no white page flashes in the dark.
const chosen = localStorage.getItem("theme");
if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
